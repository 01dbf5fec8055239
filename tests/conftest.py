"""Every test runs with the shapes in the package's signatures checked, and leaves the user's cache alone."""

import os
import tempfile
from importlib import import_module

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook(
    [
        *("lmim.axes", "lmim.encoder", "lmim.quantise", "lmim.objectives", "lmim.evaluate", "lmim.data"),
        "lmim.figures",
    ],
    "beartype.beartype",
)
import_module("lmim.survey")  # which planning then asks without another process
os.environ.setdefault("LMIM_CACHE", tempfile.mkdtemp(prefix="lmim-cache-"))
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")
os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}


@pytest.fixture(autouse=True)
def seed() -> None:
    """A test that draws draws the same in every run: what fails once can be looked at again."""
    torch.manual_seed(0)
