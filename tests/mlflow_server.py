"""`mlflow server`, for the tests that need a real one."""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lmim import tracking
from lmim.tracking import connect


def new_database(folder: Path) -> bytes:
    """MLflow's tables, for tests to begin with: to make them takes 1.5 s."""
    file = folder / "mlflow.db"
    connect(f"sqlite:///{file}")
    with contextlib.closing(sqlite3.connect(file)) as database:  # from the write-ahead log into the file
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return file.read_bytes()


class Server:
    """`mlflow server` on loopback, over the stage's database."""

    def __init__(self, out: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        self.out, self.options = out, options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
        stores = ["--backend-store-uri", f"sqlite:///{self.out / 'server.db'}"]
        artifacts = ["--artifacts-destination", str(self.out / "server")]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), *stores, *artifacts, *self.options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that its workers can be killed with it
            env=os.environ | tracking.ENVIRONMENT,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError("the MLflow server did not come up")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def serving(out: Path, database: bytes, *options: str) -> Iterator[Server]:
    """A server over a new database in `out`."""
    (out / "server.db").write_bytes(database)
    made = Server(out, *options)
    try:
        made.start()
        yield made
    finally:
        made.kill()
