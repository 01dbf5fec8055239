"""Where trials run: what they may take, how they are stopped, and who is let in."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from lmim.errors import UserError
from lmim.sweep import executors
from lmim.sweep.executors import Stop, answering
from tests.sweep.running import REPOSITORY

CLUSTER = """
import sys
from pathlib import Path
from lmim.sweep.executors import Stop, on_ray
root = Path(sys.argv[1])
with on_ray(root / "trials", Stop(root / "stop"), None, None, False):
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
    ray.get(ray.remote(lambda: 1).remote())
    print("worked", flush=True)
    sys.stdin.read()
"""
STRANGER = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("joined", ray.cluster_resources())
"""


WITHOUT_ROOM = """
import sys, time
from pathlib import Path
from lmim.sweep.executors import Stop, _telling_of_room, on_ray, waits_for_a_node
root = Path(sys.argv[1])
with on_ray(root / "trials", Stop(root / "stop"), None, None, False):
    import ray
    fits = [{"CPU": 1.0}] * int(ray.cluster_resources()["CPU"])
    print(len(fits), flush=True)
    assert ray.util.placement_group(fits).wait(60)
    queued = ray.util.placement_group(fits)
    with _telling_of_room(lambda line: print(line, flush=True), every=0.1):
        assert not queued.wait(1)
        group = ray.util.placement_group([*fits, {"CPU": 1.0}])
        while not waits_for_a_node():
            time.sleep(0.1)
        time.sleep(1)
        ray.util.remove_placement_group(group)
        while waits_for_a_node():
            time.sleep(0.1)
"""


def test_a_trial_that_waits_for_a_node_is_told_of(tmp_path: Path) -> None:
    """Otherwise a sweep stands still after a node was lost, and nobody knows what for."""
    words = [sys.executable, "-c", WITHOUT_ROOM, str(tmp_path)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, cwd=REPOSITORY, timeout=100)
    cores, *told = done.stdout.splitlines()
    assert told == [
        f"a trial waits for a node: it asks for {int(cores) + 1} x 1 cores, and the cluster's 1 now do not "
        "have them; it goes on when one joins"
    ], "once, and nothing of one that only waits its turn"


def test_a_cluster_out_of_reach_ends_no_telling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wire that is cut for a while would show a traceback, or end the telling of what waits afterwards."""
    answers: list[str | Exception] = [ConnectionError("no route"), "waits", ConnectionError("again"), "waits"]
    asked, told = threading.Event(), list[str]()

    def look() -> str:
        if not answers:
            asked.set()
            return "waits"
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(executors, "waits_for_a_node", look)
    with executors._telling_of_room(told.append, every=0.01):
        assert asked.wait(60)
    assert told == ["waits"]


def test_the_cluster_lets_no_stranger_in(tmp_path: Path) -> None:
    """Otherwise anyone on the network, or another user of the host, runs code as the user of a sweep."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    pipe = subprocess.PIPE
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(tmp_path)], stdin=pipe, stdout=pipe, text=True, env=environment
    )
    try:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        session = Path(cluster.stdout.readline().strip())
        assert cluster.stdout.readline() == "worked\n"
        assert answering(address) == address
        assert session.parents[1].stat().st_mode & 0o777 == 0o700, "sockets and logs are no other user's"
        processes = [psutil.Process(cluster.pid), *psutil.Process(cluster.pid).children(recursive=True)]
        listening = [
            (process.name(), opened.laddr.ip)
            for process in processes
            for opened in process.net_connections("inet")
            if opened.status == psutil.CONN_LISTEN
        ]
        assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
        assert {ip for _, ip in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
        plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        plain["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # or it would not even look on the loopback
        strangers = [
            subprocess.Popen(
                [sys.executable, "-c", STRANGER, address],
                stdout=pipe,
                stderr=pipe,
                text=True,
                env=plain | extra,
            )
            for extra in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})
        ]
        for stranger in strangers:
            printed, told = stranger.communicate(timeout=90)
            assert stranger.returncode != 0
            assert "joined" not in printed
            assert "auth" in told.lower(), told
    finally:
        cluster.communicate(timeout=60)
    assert cluster.returncode == 0


@pytest.mark.parametrize("says", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_cluster_that_is_gone_is_said_in_one_line(
    says: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a record that a cluster left behind makes the command hang for minutes, among Ray's logs."""
    monkeypatch.setattr(executors, "ANSWER_SECONDS", 0.2)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match="--address auto: no Ray cluster answers there: none was started"):
        answering("auto")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        place = "{}:{}".format(*listener.getsockname())
        if says is not None:  # another program has the port by now; one is silent
            listener.listen()
            if says:
                threading.Thread(target=lambda: listener.accept()[0].sendall(says), daemon=True).start()
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"{place}\n")
        with pytest.raises(UserError) as caught:
            answering("auto")
    assert str(caught.value).startswith(f"--address auto: no Ray cluster answers at {place} (")
    assert "\n" not in str(caught.value)


def test_a_dashboard_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise --dashboard ends in Ray's traceback."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(UserError, match=r"--dashboard: .*not installed; pip install 'ray\[default\]'"),
        executors.on_ray(tmp_path, Stop(tmp_path / "stop"), None, None, dashboard=True),
    ):
        pytest.fail("it was started")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_every_signal_that_asks_to_stop_is_heard(tmp_path: Path, number: signal.Signals) -> None:
    """Otherwise Ctrl-C, kill or Slurm's warning ends the command before its trials have saved."""
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    stop = Stop(tmp_path / "stop")
    try:
        stop.listen()
        assert not stop.wanted()
        os.kill(os.getpid(), number)
        assert stop.wanted()
        assert stop.file.exists(), "workers on other machines look for it"
        stop.close()
        assert not stop.file.exists()
        usual = [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]
        assert [signal.getsignal(one) for one in before] == usual
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
