"""What a round of trials may take of a budget: workers ask it before a trial starts."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmim.trial.folder import TrialFolder


@dataclass(frozen=True)
class Share:
    """One trial's part of a round: what it had taken before, what it is estimated to take, in seconds."""

    before: float
    needs: float
    rate: float
    """What a second of it takes of the budget."""


@dataclass(frozen=True)
class Allowance:
    """What a round may take."""

    shares: Mapping[str, Share]
    until: float | None = None
    """Of a budget of the clock: when it ends, in Unix seconds, on which hosts agree. Where a clock is set
    meanwhile, a trial may start that should not, or not start; the driver ends it, the next round knows."""
    left: float | None = None
    """Of one of cores or GPUs: what the round began with, in seconds."""

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "Allowance":
        """What `dataclasses.asdict` made of it."""
        return cls(**dict(given) | {"shares": {key: Share(**one) for key, one in given["shares"].items()}})

    def allows(self, folder: TrialFolder) -> bool:
        """Whether a trial would end in time if it started now. What is refused once is refused later too.

        So the trials that have started count with what they were estimated to take, or more.
        """
        own = self.shares[folder.id]
        if self.until is not None:
            return time.time() + own.needs <= self.until
        used = {one: self._used(folder.root, one) for one in self.shares}
        begun = {one for one, seconds in used.items() if seconds > 0} | {folder.id}
        taken = [max(used[one], self.shares[one].needs) * self.shares[one].rate for one in begun]
        return self.left is None or sum(taken) <= self.left

    def spent(self, root: Path) -> float:
        """What the round has taken, in seconds; of the clock, nothing is told by the trials."""
        return sum(self._used(root, one) * share.rate for one, share in self.shares.items())

    def over(self, root: Path) -> bool:
        """Whether there is nothing left of a budget of cores or GPUs."""
        return self.left is not None and self.spent(root) >= self.left

    def _used(self, root: Path, trial: str) -> float:
        return max(0.0, taken(TrialFolder(root, trial)) - self.shares[trial].before)


def taken(folder: TrialFolder) -> float:
    """The seconds of a trial so far, its judging included."""
    return folder.state().seconds + sum(result.seconds for result in folder.results())
