"""Reading ahead, with no more threads than a trial has cores."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")

_threads: int | None = None


def set_num_threads(count: int) -> None:
    """How many threads of this process may decode images: as `torch.set_num_threads`, but for reading."""
    global _threads
    _threads = count


def num_threads() -> int:
    """What `set_num_threads` was told; else all cores that this process may use, 16 at most."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _threads or min(16, usable)


def ahead(source: Iterator[Item]) -> Iterator[Item]:
    """The same items, none of them None, each made by a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, source, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, source, None)
            yield item
