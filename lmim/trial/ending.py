"""When a trial may end before its last step: a rule over the rows of its journal.

It is no part of a trial's identity, as it changes no step that is made: a sweep whose rule would not have
ended a trial takes it as interrupted, and trains it on from its checkpoint. Imports no torch.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveInt

from lmim.config import Section
from lmim.errors import count
from lmim.metrics import COLLAPSED, VAL_NN
from lmim.trial.folder import Row, State, TrialFolder


class Collapse(Section):
    """A representation that is down, and is not coming back: both measures, look after look.

    Neither alone ends a trial (see `lmim.metrics.kept`): a classifier's features have a low rank, and those
    in a narrow cone may be told apart well. One look is not enough: some dip early, and learn (see the log).
    """

    rank: Annotated[float, Field(gt=0, le=COLLAPSED)] = COLLAPSED
    """Effective rank over that before training: below; no more than what the outcome is told by."""
    cosine: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Mean cosine between images: above."""
    patience: PositiveInt = 3
    """Looks at collapse, one after the other, of which both must hold."""

    def verdict(self, rows: Sequence[Row]) -> str:
        """Why a trial with this journal has collapsed; empty if it has not."""
        first, *looks = [row.metrics for row in rows if "collapse/rank" in row.metrics] or [{}]
        last = looks[-self.patience :]
        down = [
            look["collapse/rank"] < self.rank * first["collapse/rank"]
            and look["collapse/image_cosine"] > self.cosine
            for look in last
        ]
        if len(last) < self.patience or not all(down):
            return ""
        return (
            f"collapsed: effective rank below {self.rank:g} of its first value and cosine between images "
            f"above {self.cosine:g} for {count(self.patience, 'look')}"
        )


class Prune(Section):
    """Median stopping within a search (Golovin et al. 2017): what is behind half of those before it ends."""

    looks: tuple[tuple[int, float | None], ...]
    """After which epochs the validation data are looked at, and the median of the earlier suggestions there:
    None while these are too few to tell."""

    def verdict(self, rows: Sequence[Row]) -> str:
        """Why a trial with this journal is pruned; empty if it is not."""
        found = [row.metrics[VAL_NN] for row in rows if VAL_NN in row.metrics]
        for value, (epoch, median) in zip(found, self.looks, strict=False):
            if median is not None and value < median:
                behind = f"1-NN on validation data {value:.2f} after epoch {epoch}"
                return f"pruned: {behind}, below {median:.2f}, the median of the suggestions before it"
        return ""


class Ending(Section):
    """What may end a trial early; a rule that is not there ends none."""

    collapse: Collapse | None = None
    prune: Prune | None = None

    def looks_at(self, epoch: float) -> bool:
        """Whether the validation data are to be looked at after this epoch."""
        return self.prune is not None and epoch in [at for at, _ in self.prune.looks]

    def verdict(self, rows: Sequence[Row]) -> str:
        """Why a trial with this journal ends after its last row, its outcome first; empty if it goes on."""
        pruned = self.prune.verdict(rows) if self.prune else ""
        return pruned or (self.collapse.verdict(rows) if self.collapse else "")


def goes_on(state: State, folder: TrialFolder, ending: Ending | None) -> bool:
    """Whether a trial was ended early that this rule, or no rule, would have had go on."""
    return bool(state.ended) and not (ending and ending.verdict(folder.rows()[0]))
