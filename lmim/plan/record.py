"""What a sweep set out to do, as it is kept: <out>/<name>/<scale>/plan.json, and the same in MLflow."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lmim.metrics import Metric, known
from lmim.plan.ablation import Arm, Sweep
from lmim.trial.code import code_digest, code_version
from lmim.trial.evaluation import Evaluation


class RecordedTrial(BaseModel):
    """A trial as the report needs it; its config lies in its folder."""

    model_config = ConfigDict(frozen=True)

    id: str
    arm: str
    seed: int
    data_version: str = ""


class Record(BaseModel):
    """What a sweep set out to do."""

    model_config = ConfigDict(frozen=True)

    name: str
    scale: str
    settings: dict[str, str] = {}
    """What --set laid over every arm: such results must not pass for the scale's own."""
    question: str
    metric: str
    design: str
    seeds: tuple[int, ...]
    claims: tuple[str, ...]
    arms: tuple[Arm, ...]
    trials: tuple[RecordedTrial, ...]
    evaluations: tuple[Evaluation, ...] = ()
    metrics: dict[str, Metric] = {}
    """How each metric is called, in what it is measured, and which way is better."""
    code: str = ""
    """The code that results are compared with, by `code_digest`."""
    commit: str = ""

    @classmethod
    def of(cls, sweep: Sweep) -> "Record":
        """The plan of a loaded sweep file: all of it, whichever of its trials run now."""
        return cls(
            name=sweep.name,
            scale=sweep.scale,
            settings=sweep.settings,
            question=sweep.question,
            metric=sweep.metric,
            design=sweep.design,
            seeds=tuple(sweep.seeds),
            claims=tuple(claim.text for claim in sweep.claims),
            arms=sweep.arms,
            trials=tuple(
                RecordedTrial(id=t.id, arm=t.arm, seed=t.seed, data_version=t.config.data.version or "")
                for t in sweep.planned
            ),
            evaluations=sweep.evaluations,
            metrics=known(sweep.evaluations),
            code=code_digest(),
            commit=code_version(),
        )

    def file(self, out: Path) -> Path:
        """Where the plan is kept."""
        return out / self.name / self.scale / "plan.json"
