"""A trial that is trained in a second."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from lmim.config import Config, merge

TINY: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 8, "train_images": 256},
    "encoder": {"patch_size": 2, "width": 16, "depth": 1, "heads": 2},
    "decoder": {"width": 16, "depth": 1, "heads": 2},
    "projector": {"width": 16},
    "optim": {"epochs": 4, "batch_size": 32, "base_lr": 1e-2, "warmup_epochs": 0.5},
    "watch": {"images": 64},
    "run": {"device": "cpu", "log_every": 3, "checkpoint_seconds": 0.0},
}


@pytest.fixture
def tiny() -> Callable[..., Config]:
    """Its config; keywords change keys: `optim__epochs=2`."""

    def read(sources: Mapping[str, str] = {}, **changes: Any) -> Config:
        tree = merge(TINY, {key.replace("__", "."): value for key, value in changes.items()})
        return Config.read(tree | {"sources": sources})

    return read
