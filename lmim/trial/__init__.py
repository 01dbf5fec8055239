"""What is remembered of a trial: its folder, and the code that made it."""
