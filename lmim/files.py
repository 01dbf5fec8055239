"""Files that are replaced as a whole."""

import os
from pathlib import Path


def write_atomic(file: Path, text: str) -> None:
    """Replace `file` by `text`: after a crash it holds the old content or the new, never a part."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
