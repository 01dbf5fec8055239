"""Which tokenizer a trial's token target needs, and where it lies once `lmim.tokenizer` has fitted it.

A tokenizer is a function of the data, of a patch's size, of the target's settings and of the code, so that
trials that differ in all else share one. The trial's own identity has the first three; what another code
makes of them a replay tells, as it does of everything. Pure: imports no torch.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmim.config import Config
from lmim.files import cache_root
from lmim.trial.code import code_digest

FITTED = ("kmeans", "fsq")
"""The targets whose tokenizer is fitted before a trial begins."""
WEIGHTS, ABOUT = "tokenizer.safetensors", "tokenizer.json"
"""The files of a tokenizer: the target's state, and what it was made from with its figures."""


def needed(configs: Iterable[Config]) -> list[Config]:
    """A config for each tokenizer that some configs need."""
    fitted = [one for one in configs if hasattr(one, "collapse") and one.section("collapse").kind in FITTED]
    return list({place(one, one.data.version): one for one in fitted}.values())


def made_from(config: Config, version: str | None) -> dict[str, Any]:
    """What a config's tokenizer is made from, the data being of this version."""
    elsewhere = {"path", "version", "crop_scale", "flip"}
    data = config.data.model_dump(mode="json", exclude=elsewhere) | {"version": version}
    made: dict[str, Any] = config.section("collapse").model_dump(mode="json")
    return made | {"patch_size": config.section("encoder").patch_size, "data": data}


def place(config: Config, version: str | None) -> str:
    """The name of its folder in the cache."""
    made = made_from(config, version)
    text = json.dumps({**made, "code": code_digest()}, sort_keys=True)
    return f"tokenizers/{made['kind']}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def folder(config: Config, version: str | None) -> Path:
    """Its folder, there or yet to be made."""
    return cache_root() / place(config, version)


def tell(config: Config) -> str:
    """What it is, for people: `tokenizer kmeans codes=128 of glyphs, 20 px in patches of 5 px`."""
    made = made_from(config, config.data.version)
    settings = [f"{key}={value}" for key, value in config.section("collapse").settings().items()]
    size = f"{config.data.image_size} px in patches of {made['patch_size']} px"
    return " ".join(["tokenizer", made["kind"], *settings, "of", f"{config.data.name},", size])
