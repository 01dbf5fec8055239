"""Secrets that a sweep is given, or makes, are looked for in all that it shows, starts and leaves.

One real sweep, on Ray with its dashboard and with a real MLflow server; a trial of it learns, and one fails.
"""

import contextlib
import os
import re
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from tests.mlflow_server import new_database, serving
from tests.sweep.running import arguments, at_step, eventually, start, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

USER, PASSWORD = "user-of-the-uri", "pw-of-the-uri"
IN_URI = f"{USER}:{PASSWORD}"
GIVEN = {
    "MLFLOW_TRACKING_USERNAME": "name-of-the-environment",
    "MLFLOW_TRACKING_PASSWORD": "pw-of-the-environment",
    "AWS_ACCESS_KEY_ID": "id-of-the-object-store",
    "AWS_SECRET_ACCESS_KEY": "key-of-the-object-store",
    "AWS_SESSION_TOKEN": "session-of-the-object-store",
}
TOKEN = "RAY_AUTH_TOKEN"
WAITING = """
import pathlib, time
from torch.nn import functional as F

seen = 0

def waiting(prediction, target):
    global seen
    seen += 1
    while seen > 3 and not pathlib.Path({go!r}).exists():
        time.sleep(0.05)
    return F.mse_loss(prediction, target)

def broken(prediction, target):
    return prediction.no_such_method()
"""
PAGES = [
    *("/nodes?view=summary", "/logical/actors", "/events", "/api/jobs/", "/api/cluster_status"),
    *("/api/component_activities", "/api/v0/cluster_metadata", "/api/v0/cluster_events", "/test/dump"),
    *(f"/api/v0/{kind}" for kind in ("actors", "jobs", "nodes", "workers", "placement_groups", "tasks")),
    *(f"/api/v0/{kind}" for kind in ("objects", "runtime_envs", "tasks/timeline")),
]
"""What Ray's dashboard answers about a cluster, beside a node's own page."""

Found = dict[str, bytes]
"""A place and what stands there."""


def files(folder: Path) -> Found:
    """What the files under a folder hold; some go while they are read."""
    found = {}
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    found[str(path)] = path.read_bytes()
    return found


def command_lines(processes: Iterable[psutil.Process]) -> Found:
    """The words that anybody on this machine sees of each."""
    found = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found[f"{process.pid} {process.name()}"] = " ".join(process.cmdline()).encode()
    return found


def dashboard(lines: Found, token: str) -> Found:
    """All that Ray's dashboard tells."""
    (port,) = {
        port for line in lines.values() for port in re.findall(rb"/dashboard\.py .*--port=(\d+)", line)
    }

    def ask(page: str) -> bytes:
        headers = {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(f"http://127.0.0.1:{int(port)}{page}", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    (node,) = set(re.findall(rb'"nodeId": "(\w+)"', ask("/nodes?view=summary")))
    return {page: ask(page) for page in [*PAGES, f"/nodes/{node.decode()}"]}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """All that could be seen of the sweep, by where; `secrets` are what must not be there."""
    folder = tmp_path_factory.mktemp("secrets")
    served, go = folder / "served", folder / "go"
    served.mkdir()
    (folder / "my_losses.py").write_text(WAITING.format(go=str(go)))
    arms = "['my_losses.py:waiting', 'my_losses.py:broken']"
    file = write(folder, arms=arms, seeds="[0]", more="evaluate: [knn]\n")
    looked: dict[str, Found] = {}
    with serving(served, new_database(served)) as server:
        uri = server.uri.replace("://", f"://{IN_URI}@")
        command = start(arguments(file, "--tracking-uri", uri, "--dashboard", epochs=4), **GIVEN)
        driver = psutil.Process(command.pid)
        try:
            (trial,) = eventually(lambda: at_step(file, 1), "the trial trains")
            processes = [*driver.children(recursive=True), driver]
            (raylet,) = (one for one in processes if one.name() == "raylet")
            token, key = (raylet.environ()[name] for name in (TOKEN, "AWS_SECRET_ACCESS_KEY"))
            assert key == GIVEN["AWS_SECRET_ACCESS_KEY"], "a worker reads and writes there"
            (scratch,) = set(re.findall(r"--session-dir=(/\S+?)/ray/", " ".join(raylet.cmdline())))
            looked["a trial's environment"] = {
                key: f"{key}={value}".encode()
                for key, value in psutil.Process(trial.pid).environ().items()
                if not key.startswith("AWS_")
            }
            looked["command lines"] = command_lines(processes)
            looked["Ray's dashboard"] = dashboard(looked["command lines"], token)
            looked["Ray's session"] = {}
            go.touch()
            while command.poll() is None:
                looked["Ray's session"] |= files(Path(scratch))
                looked["command lines"] |= command_lines(driver.children(recursive=True))
                time.sleep(0.2)
        finally:
            command.terminate()
            printed, _ = command.communicate(timeout=60)
    assert command.returncode == 1, printed
    looked["what is printed"] = {"output": printed.encode()}
    looked["MLflow"] = files(served)
    looked["results"] = files(folder / "out")
    looked["secrets"] = {name: value.encode() for name, value in {**GIVEN, TOKEN: token}.items()}
    looked["secrets"] |= {"user in the URI": USER.encode(), "password in the URI": PASSWORD.encode()}
    return looked


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("what is printed", "no_such_method"),
        ("results", "<!doctype html>"),
        ("MLflow", "lmim.trial_id"),
        ("a trial's environment", "OMP_NUM_THREADS=1"),
        ("command lines", "serve()"),
        ("command lines", "lmim.sweep"),
        ("Ray's session", "ImplicitFunc"),
        ("Ray's dashboard", "lmim.sweep"),
    ],
)
def test_no_secret_is_to_be_seen(seen: dict[str, Found], where: str, what: str) -> None:
    """Otherwise who reads a log, a report or a page writes to MLflow, to the object store, or runs code."""
    places = seen[where]
    assert any(what.encode() in text for text in places.values()), "this is not what was to be looked at"
    told = [
        (name, place)
        for name, one in seen["secrets"].items()
        for place, text in places.items()
        if one in text
    ]
    assert not told
