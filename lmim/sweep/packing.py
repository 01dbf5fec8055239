"""How many trials share a GPU, where `run.gpus` is auto: the fewest that use it as well as more would.

The policy, and what it remembers; `crowd.py` measures.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmim.config import Config
from lmim.files import write_atomic
from lmim.plan import cost, facts
from lmim.trial.code import code_digest

MARGIN = 0.9
"""The part of a GPU's memory that trials may take: judging and fragments of long runs take some more."""
NEAR = 0.95
"""More trials that do not give so much more throughput, each of which takes longer, are not worth it."""


@dataclass(frozen=True)
class Measured:
    """So many trials on one GPU, for a few seconds."""

    trials: int
    images_per_second: float
    """Of all of them together."""
    mib: float
    """What each takes of the GPU's memory at most."""
    total_mib: float


@dataclass(frozen=True)
class Choice:
    """How many share a GPU, and why."""

    trials: int
    reason: str


def fits(trials: int, one: Measured) -> bool:
    """Whether so many would have room, each taking as much as those that were measured."""
    return trials * one.mib <= MARGIN * one.total_mib


def fit(measured: Sequence[Measured], most: int) -> Choice:
    """The fewest trials whose throughput is near the best of what has room, `most` at most.

    >>> rates = {1: 2100, 2: 3600, 4: 4900, 8: 4950}
    >>> fit([Measured(trials, rate, 9318, 81920) for trials, rate in rates.items()], most=16).reason
    '4 share a GPU: 9.1 GiB each of 80; images/s: 2,100 by 1, 3,600 by 2, 4,900 by 4'
    """
    allowed = [one for one in measured if one.trials <= most and fits(one.trials, one)]
    if not allowed:
        need = f": one takes {_gib(measured[0])}" if measured else ""
        return Choice(1, f"each has a GPU to itself{need}")
    best = max(one.images_per_second for one in allowed)
    chosen = next(one for one in allowed if one.images_per_second >= NEAR * best)
    rates = ", ".join(f"{one.images_per_second:,.0f} by {one.trials}" for one in allowed)
    how = f"{chosen.trials} share a GPU" if chosen.trials > 1 else "each has a GPU to itself"
    return Choice(chosen.trials, f"{how}: {_gib(chosen)}; images/s: {rates}")


def _gib(one: Measured) -> str:
    return f"{one.mib / 1024:.1f} GiB each of {one.total_mib / 1024:.0f}"


def heaviest(configs: Iterable[Config]) -> Config | None:
    """Of those that ask for auto and learn something, the one whose step takes the most memory.

    By what each keeps for its backward pass (see `survey.flops`): it takes no GPU, so that one is measured.
    """
    unique = {
        config.arm: config
        for config in configs
        if config.run.gpus == "auto" and config.run.processes == 1 and config.optim.epochs
    }
    arms = [*unique.values()][:: max(1, -(-len(unique) // cost.MODELS))]
    kept = [one.kept for one in facts.flops_of(arms)]
    found = max(
        zip(kept, arms, strict=True), key=lambda pair: pair[0] * pair[1].optim.batch_size, default=None
    )
    return found[1] if found and found[0] else None


# ---------------------------------------------------------------------------- what was measured


def remembered(out: Path, config: Config, device: str, most: int) -> list[Measured] | None:
    """What a sweep into `out` has measured of this arm by this code on such a GPU, with as many trials."""
    found = _read(out).get(_key(config, device))
    if found is None or found["most"] < most:
        return None
    return [Measured(**one) for one in found["measured"]]


def remember(out: Path, config: Config, device: str, most: int, measured: Sequence[Measured]) -> None:
    """Keep it for the next run."""
    entry = {"most": most, "measured": [asdict(one) for one in measured]}
    text = json.dumps(_read(out) | {_key(config, device): entry}, indent=2)
    write_atomic(out / "packing.json", text + "\n")


def _key(config: Config, device: str) -> str:
    run = config.run
    how = f"cpus={run.cpus} threads={run.threads} compile={run.compile} checkpointing={run.checkpointing}"
    return f"{device} {config.arm} {how} {code_digest()}"


def _read(out: Path) -> dict[str, Any]:
    try:
        found = json.loads((out / "packing.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a damaged one is made again
        return {}
    return found if isinstance(found, dict) else {}
