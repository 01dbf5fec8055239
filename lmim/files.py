"""Files that are replaced as a whole, and where those that can be made again are kept."""

import os
from pathlib import Path


def write_atomic(file: Path, content: str | bytes | memoryview, durable: bool = True) -> None:
    """Replace `file` as a whole: a reader, or a crash, finds the old content or the new, never a part.

    `durable` waits for the disk, so that not even a host that dies goes back to the old content.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError:  # a full disk must not be kept full by what it had no room for
        temporary.unlink(missing_ok=True)
        raise


def cache_root() -> Path:
    """$LMIM_CACHE, or ~/.cache/lmim."""
    chosen = os.environ.get("LMIM_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "lmim"
