"""The paper's four questions, one file each."""
