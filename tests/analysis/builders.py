"""A sweep of three losses and two baselines, as a plan, as trials, and in a real MLflow database."""

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag

from lmim.analysis import results
from lmim.plan.record import place

ARMS = ("mse", "cosine", "patch_discrimination")
BASELINES = ("random_encoder", "raw_pixels")
NN = {
    "mse": [6.7, 7.5, 7.1],
    "cosine": [6.5, 6.9, 8.3],
    "patch_discrimination": [14.0, 15.0, 14.6],
    "random_encoder": [7.5, 7.4, 7.7],
    "raw_pixels": [35.5, 35.5, 35.5],
}
CLAIMS = ["patch_discrimination > mse", "mse > patch_discrimination", "mse > cosine", "mse collapsed"]
METRICS = {
    "eval/knn_top1": {"label": "k-NN top-1", "unit": "%", "better": "higher"},
    "eval/nn_top1": {"label": "1-NN top-1", "unit": "%", "better": "higher"},
    "eval/rank_ratio": {"label": "rank ratio", "unit": "", "better": "higher"},
    "collapse/rank": {"label": "effective rank", "unit": "", "better": "higher"},
}


def plan_of(arms: Mapping[str, Mapping[str, Any]], seeds: int = 3, **fields: Any) -> dict[str, Any]:
    """A plan as the sweep writes it."""
    names = [*arms, *BASELINES]
    return {
        "name": "loss",
        "scale": "demo",
        "question": "Does patch discrimination avoid the trivial solutions?",
        "metric": "knn_top1",
        "design": "grid",
        "seeds": list(range(seeds)),
        "claims": CLAIMS,
        "code": "c0de",
        "commit": "abc1234",
        "metrics": METRICS,
        "arms": [
            {"name": name, "axes": dict(arms.get(name, {})), "baseline": name in BASELINES} for name in names
        ],
        "trials": [{"id": f"{name}-{s}", "arm": name, "seed": s} for name in names for s in range(seeds)],
    } | fields


def runs_of(plan: Mapping[str, Any]) -> list[results.Trial]:
    """All of a plan's trials, done, with the figures above."""
    found = []
    for index, t in enumerate(plan["trials"]):
        value = NN[t["arm"]][t["seed"]]
        metrics = {"eval/knn_top1": value, "eval/nn_top1": value / 2, "system/seconds": 36.0}
        if t["arm"] != "raw_pixels":
            ratio = (0.1 if t["arm"] == "mse" else 0.9) + 0.01 * t["seed"]
            metrics |= {"eval/rank_ratio": ratio, "collapse/rank": 20 * ratio}
        found.append(
            results.Trial(
                id=t["id"],
                arm=t["arm"],
                seed=t["seed"],
                run_id=f"run{index}",
                outcome="collapsed" if t["arm"] == "mse" else "learned",
                code="c0de",
                commit="abc1234",
                dataset_version="v1",
                python="3.11.9",
                torch="2.15.0",
                timm="1.0.31",
                device="EPYC AVX512",
                host="node7",
                metrics=metrics,
                params={"run.cpus": "2"},
            )
        )
    return found


PLAN = plan_of({arm: {"loss": arm} for arm in ARMS})
RUNS = runs_of(PLAN)


def fill(out: Path, plan: Mapping[str, Any], runs: list[results.Trial], **tags: str) -> str:
    """Write a sweep into an MLflow database the way the tracker does, `tags` on the parent; its URI."""
    uri = f"sqlite:///{out / 'mlflow.db'}"
    client = MlflowClient(uri)
    there = client.get_experiment_by_name("loss")
    where = there.experiment_id if there else client.create_experiment("loss", str(out / "artifacts"))
    tags = {"place": place(plan["scale"], plan.get("settings", {}))} | tags
    tags |= {key: plan[key] for key in ("scale", "question", "metric", "design")} | {"sweep": "loss"}
    parent = client.create_run(where, tags={f"lmim.{key}": tag for key, tag in tags.items()}).info.run_id
    client.log_dict(parent, dict(plan), "plan.json")
    for trial in runs:
        words = "arm seed code commit replayed differs dataset_version outcome status"
        words += " python torch timm device host"
        own = {f"lmim.{word}": str(getattr(trial, word)) for word in words.split()}
        own |= {"mlflow.parentRunId": parent, "lmim.trial_id": trial.id}
        run = client.create_run(where, tags=own).info.run_id
        last = [Metric(key, value, 9, 40) for key, value in trial.metrics.items()]
        rng = random.Random(trial.id)
        course = [
            Metric(key, start * math.exp(-rate * step / 10) + 0.05 * rng.random(), step, step)
            for step in range(0, 40, 4)
            for key, start, rate in (("train/loss", 2.0, 1.0), ("collapse/image_cosine", 0.9, 0.3))
        ]
        client.log_batch(run, metrics=last + course, tags=[RunTag("lmim.axis.loss", trial.arm)])
        client.log_param(run, "run.cpus", trial.params.get("run.cpus", "1"))
        client.set_terminated(run)
    return uri
