"""Results in an object store: nothing is lost or done twice, though it knows no lock, rename or append."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmim.command import out_folder
from lmim.config import Config
from lmim.errors import UserError
from lmim.files import write_atomic
from lmim.loading import load_trial
from lmim.trial import store as stores
from lmim.trial.folder import Busy, TrialFolder
from lmim.trial.store import Leased, Store
from tests.trial.object_store import URI, machine, s3_server

CONFIG = Config.read({})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with s3_server() as found:
        for key, value in found.items():
            monkeypatch.setenv(key, value)
        yield


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of a second: nothing is asserted of how long things take."""
    monkeypatch.setattr(stores, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(stores, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(stores, "PUSH_SECONDS", 0.2)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def trial_on(store: Store) -> TrialFolder:
    folder = TrialFolder(store.out / "trials", CONFIG.identity)
    folder.create(CONFIG)
    return folder


def train(folder: TrialFolder, steps: int, status: str = "interrupted", fetched: bool = False) -> None:
    """What the trainer does to a folder that it holds."""
    if not fetched:
        folder.fetch()
    begun = int(folder.checkpoint.read_text()) if folder.checkpoint.exists() else 0
    folder.rewind(begun)
    for step in range(begun + 1, begun + steps + 1):
        folder.append(step, {"train/loss": 1.0})
    write_atomic(folder.checkpoint, str(begun + steps))
    folder.update(status=status, step=begun + steps)


def steps_of(folder: TrialFolder) -> list[int]:
    return [row.step for row in folder.rows()[0]]


HOLDER = """
import sys, time
from pathlib import Path
from lmim.trial import store as stores
stores.LEASE_SECONDS, stores.RENEW_SECONDS, stores.PUSH_SECONDS = 1.0, 0.1, 0.2
from lmim.trial.store import Store
from tests.trial.test_store import trial_on, train
folder = trial_on(Store.open(sys.argv[1]))
with folder.lock():
    train(folder, 3)
    folder.store.push(folder.id, folder.store._objects(folder.id).newest)
    train(folder, 2) if "ahead" in sys.argv else None
    print("held", flush=True)
    sys.stdin.readline()
    folder.append(9, {"train/loss": 9.0})
    folder.update(status="done", step=9)
print("left", flush=True)
"""


def holder(cache: Path, *words: str) -> subprocess.Popen[str]:
    """A process that has come to step 3 in the store, and holds the trial."""
    environment = os.environ | {"LMIM_CACHE": str(cache)}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, URI, *words],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.usefixtures("server")
def test_what_one_machine_leaves_another_finds(tmp_path: Path) -> None:
    """Otherwise a sweep could not go on elsewhere."""
    here, there = machine(tmp_path / "a"), machine(tmp_path / "b")
    folder = trial_on(here)
    with folder.lock():
        train(folder, 3)
        (folder.path / "evaluations").mkdir()
        (folder.path / "evaluations" / "nn.json").write_text("{}")
    there.refresh(patience=0.0)
    other = TrialFolder(there.out / "trials", folder.id)
    assert (other.config(), other.state(), steps_of(other)) == (CONFIG, folder.state(), [1, 2, 3])
    assert not other.checkpoint.exists(), "of 10,000 trials a driver must not fetch 10,000 checkpoints"
    with other.lock():
        (other.path / "evaluations" / "nn.json").unlink()
        train(other, 2, "done")
    with folder.lock():
        assert steps_of(folder) == [1, 2, 3, 4, 5]
        folder.fetch()
        assert folder.checkpoint.read_text() == "5"
        assert not (folder.path / "evaluations" / "nn.json").exists()


@pytest.mark.usefixtures("server")
def test_what_is_not_fetched_is_not_lost(tmp_path: Path) -> None:
    """A driver that notes a failure would leave the trial without its checkpoint."""
    folder = trial_on(machine(tmp_path / "a"))
    with folder.lock():
        train(folder, 3)
    other = trial_on(machine(tmp_path / "b"))
    with other.lock():
        other.update(status="failed", error="no")
    assert not other.checkpoint.exists()
    with folder.lock():
        folder.fetch()
        assert (folder.state().status, folder.checkpoint.read_text()) == ("failed", "3")


@pytest.mark.usefixtures("server", "quick")
def test_who_lives_is_waited_for(tmp_path: Path) -> None:
    """Two would train the same trial."""
    with holder(tmp_path / "a") as process:
        assert process.stdin is not None
        other = trial_on(machine(tmp_path / "b"))
        with pytest.raises(Busy, match=f"run by process {process.pid} on "), other.lock():
            pass
        machine(tmp_path / "b").refresh(patience=0.0)
        assert other.locked()
        process.communicate("\n", timeout=60)
    with other.lock():
        assert other.state().status == "done"


@pytest.mark.usefixtures("server", "quick")
def test_who_is_dead_is_followed(tmp_path: Path) -> None:
    """A trial whose host is gone would never be gone on with."""
    with holder(tmp_path / "a") as process:
        process.kill()
    other = trial_on(machine(tmp_path / "b"))
    with other.lock():
        train(other, 2, "done")
    assert steps_of(other) == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("server")
def test_on_the_same_machine_nobody_waits_for_the_dead(tmp_path: Path) -> None:
    """What was not copied yet would be trained again, or a minute be lost at each kill."""
    with holder(tmp_path / "a", "ahead") as process:
        process.kill()
    folder = trial_on(machine(tmp_path / "a"))
    machine(tmp_path / "a").refresh(patience=0.0)
    assert not folder.locked()
    with folder.lock():
        assert folder.state().step == 5
        train(folder, 1)
    assert steps_of(folder) == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("server", "quick")
def test_who_was_given_up_and_comes_back_spoils_nothing(tmp_path: Path) -> None:
    """The trial's figures would be those of two trainings."""
    with holder(tmp_path / "a") as process:
        process.send_signal(signal.SIGSTOP)
        other = trial_on(machine(tmp_path / "b"))
        with other.lock():
            train(other, 2, "done")
        process.send_signal(signal.SIGCONT)
        _, told = process.communicate("\n", timeout=60)
    assert "another process took it over" in told
    store = machine(tmp_path / "c")
    store.refresh(patience=0.0)
    third = TrialFolder(store.out / "trials", CONFIG.identity)
    third.fetch()
    assert (third.state().step, steps_of(third), third.checkpoint.read_text()) == (5, [1, 2, 3, 4, 5], "5")
    back = trial_on(machine(tmp_path / "a"))  # also where it was trained in vain
    with back.lock():
        assert steps_of(back) == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("server", "quick")
def test_of_many_who_come_at_once_one_gets_it(tmp_path: Path) -> None:
    """A driver on each of several machines is started by the same script."""
    machines = [machine(tmp_path / str(number)) for number in range(8)]
    trial_on(machines[0])
    start, got, failed = threading.Barrier(len(machines)), [], []

    def take(store: Store) -> None:
        start.wait()
        try:
            got.append(store._take(CONFIG.identity))
        except Leased as error:
            failed.append(str(error))

    threads = [threading.Thread(target=take, args=(store,)) for store in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # nobody renews these leases, so that they are taken one after the other, never by two
    assert len(got) == len(set(got))
    assert len(got) + len(failed) == len(machines)


def test_a_server_that_is_away_for_a_while_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """A night's training would be lost to a restart of the store."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    port = free_port()
    with s3_server(port) as found:
        for key, value in found.items():
            monkeypatch.setenv(key, value)
        folder = trial_on(machine(tmp_path / "a"))
        with folder.lock():
            train(folder, 3)
    with pytest.raises(UserError, match=r"--out s3://bucket/results: Could not connect .* is kept in "):
        folder.lock().__enter__()
    lasting = folder.lock()
    with s3_server(port, again=True):
        lasting.__enter__()
        folder.fetch()
    train(folder, 2, "done", fetched=True)
    with pytest.raises(UserError, match="Could not connect"):
        lasting.__exit__(None, None, None)
    with s3_server(port, again=True):
        with folder.lock():
            assert steps_of(folder) == [1, 2, 3, 4, 5], "what was not copied goes there the next time"
        third = trial_on(machine(tmp_path / "c"))
        with third.lock():
            assert steps_of(third) == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("server")
def test_what_somebody_deletes_in_the_store_is_trained_again(tmp_path: Path) -> None:
    """The way to have a trial trained anew would do nothing, as each machine has its mirror."""
    store = machine(tmp_path / "a")
    folder = trial_on(store)
    with folder.lock():
        train(folder, 3, "done")
    store.remove(f"trials/{folder.id}")
    store.refresh(patience=0.0)
    assert folder.state().status == "new"
    assert (folder.root / f".{folder.id}.deleted" / "checkpoint.pt").exists()


@pytest.mark.usefixtures("server")
def test_reports_and_studies_go_with_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that goes on elsewhere would not know what it claimed, nor what it searched."""
    here = machine(tmp_path / "a")
    for name in ("loss/demo/plan.json", "studies/a.log", "mlflow.db", "artifacts/x", ".stop-1"):
        (here.out / name).parent.mkdir(parents=True, exist_ok=True)
        (here.out / name).write_text(name)
    with stores.stored(here.out):
        pass
    monkeypatch.setenv("LMIM_CACHE", str(tmp_path / "b"))
    out = out_folder(URI)
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == [".mirror.json", "loss/demo/plan.json", "store.json", "studies/a.log"]


@pytest.mark.usefixtures("server")
def test_a_wish_to_stop_reaches_other_machines(tmp_path: Path) -> None:
    """Ctrl-C would end the driver and leave its trials running."""
    here, there = machine(tmp_path / "a"), machine(tmp_path / "b")
    assert not there.is_wished(".stop-1")
    here.wish(".stop-1")
    assert there.is_wished(".stop-1")
    here.remove("stops/.stop-1")
    assert not there.is_wished(".stop-1")


@pytest.mark.usefixtures("server")
def test_a_trial_that_is_not_there_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody mistypes an identity, and reads of a hidden file."""
    monkeypatch.setenv("LMIM_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"nope/config\.json: no such trial"):
        load_trial(f"{URI}/trials/nope")


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nope://x/y", "--out nope://x/y: Protocol not known: nope"),
        ("gs://x/y", r"--out gs://x/y: Please install gcsfs"),
        ("s3://missing/y", r"--out s3://missing/y: The specified bucket does not exist"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_line(uri: str, message: str, tmp_path: Path) -> None:
    """A traceback of three libraries says nothing."""
    with pytest.raises(UserError, match=message):
        trial_on(machine(tmp_path / "a", uri))


def test_the_mirror_of_a_store_in_memory(tmp_path: Path) -> None:
    """Whatever fsspec opens will do, not S3 alone."""
    here, there = machine(tmp_path / "a", "memory://results"), machine(tmp_path / "b", "memory://results")
    folder = trial_on(here)
    with folder.lock():
        train(folder, 2, "done")
    there.refresh(patience=0.0)
    assert steps_of(TrialFolder(there.out / "trials", folder.id)) == [1, 2]


def test_a_driver_goes_on_where_the_server_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its trials, which go on, would be left alone, and stop."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    port = free_port()
    with s3_server(port) as found:
        for key, value in found.items():
            monkeypatch.setenv(key, value)
        here, there = machine(tmp_path / "a"), machine(tmp_path / "b")
        folder = trial_on(here)
        there.refresh()
    there._look_at = 0.0
    there.refresh()
    assert "Could not connect" in caplog.text
    with pytest.raises(UserError, match="Could not connect"):
        there.refresh(patience=0.1)
    with s3_server(port, again=True):
        with folder.lock():
            train(folder, 3)
        there.refresh(patience=60.0)
    assert steps_of(TrialFolder(there.out / "trials", folder.id)) == [1, 2, 3]


@pytest.mark.usefixtures("server")
def test_who_reads_while_another_follows_reads_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver would end, or show a trial that is half of one holder and half of the next."""
    here, there = machine(tmp_path / "a"), machine(tmp_path / "b")
    folder = trial_on(here)
    with folder.lock():
        train(folder, 3)
    get, follow = Store._get, iter([True])

    def meanwhile(store: Store, file: Path, *parts: object) -> None:
        if store is there and parts[-1] == "journal.jsonl" and next(follow, False):
            with folder.lock():
                train(folder, 2)
        get(store, file, *parts)

    monkeypatch.setattr(Store, "_get", meanwhile)
    there.pull(folder.id)
    other = TrialFolder(there.out / "trials", folder.id)
    assert (other.state().step, steps_of(other)) == (5, [1, 2, 3, 4, 5])
