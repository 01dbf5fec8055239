"""Results on an object store: `--out s3://bucket/results`, or whatever else fsspec opens.

An object store has no rename, no lock and no append, so that everything works on a mirror in the local cache,
and a trial's folder goes to and fro as a whole:

    <uri>/trials/<id>/config.json, sources/    what the trial is, put there by who plans it; also replay.json
    <uri>/trials/<id>/<n>/lease                the n-th process that holds the trial, with a heartbeat
    <uri>/trials/<id>/<n>/released             it holds it no more
    <uri>/trials/<id>/<n>/...                  the rest of the folder as that process left it, state.json last
    <uri>/stops/<name>                         a driver's wish that its trials stop
    <uri>/...                                  plans, reports and studies

A lease is an object that is created, which one of two who try at once can do; the one after it has the next
number. It is taken over when its heartbeat stands still by the clock of the one who waits, so that no two
clocks are compared. Each holder writes under its own number alone, and the highest number that has a state
is the trial: one that was cut off and comes back writes where nobody looks any more.

What is made again from the rest (MLflow's database, a trial's figures) stays in the mirror.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

from lmim.errors import UserError, brief, redacted
from lmim.files import cache_root
from lmim.trial.mirror import (
    LARGE,
    LOCAL,
    LOCAL_RESULTS,
    MARKER,
    RECORD,
    STATE,
    Objects,
    Synced,
    Versions,
    is_plain,
    names_of,
    snapshot,
    stat_of,
    trials_of,
    version_of,
)

log = logging.getLogger(__name__)

RENEW_SECONDS = 15.0
"""Between two heartbeats of a lease."""
LEASE_SECONDS = 60.0
"""A heartbeat that stands still for so long is that of a process that is gone."""
PUSH_SECONDS = 30.0
"""Between two copies of a running trial; for twice as long a store is asked that takes no last one."""
LOOK_SECONDS = 5.0
"""The least between two looks at what others have done."""
AT_ONCE = 16
"""Trials that are read at the same time."""


class Leased(Exception):
    """Another process holds the trial, or took it over; says which."""


class Gone(UserError):
    """Something is not there: a bucket, or what a holder left, since its follower has left as much."""


@dataclass(frozen=True)
class Beat:
    """A lease that was seen."""

    number: int
    version: str
    """Of its heartbeat."""
    since: float
    """When it was first seen, by this process' clock."""
    mine: bool
    """Of this mirror, whose own lock says better whether the holder lives."""


class Store:
    """An object store, with its mirror `out` on this machine."""

    def __init__(self, uri: str, out: Path, token: str) -> None:
        self.uri, self.out, self.token = uri, out, token
        self._known: dict[str, Objects] = {}
        self._beats: dict[str, Beat] = {}
        self._look_at = 0.0

    @classmethod
    def open(cls, uri: str) -> "Store":
        """The store that a URI names, its mirror made.

        Raises:
            UserError: nothing opens such a URI, or what does is not installed.
        """
        uri = uri.rstrip("/")
        out = (cache_root() / "stores" / hashlib.sha256(uri.encode()).hexdigest()[:16]).resolve()
        if (found := store_of(out)) is not None:
            return found
        # the mirror's name in leases: who has a lock of its knows that nobody else has its leases
        made = cls(uri, out, uuid.uuid4().hex)
        _ = made.system
        out.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"uri": uri, "token": made.token})
        part = out / f".{MARKER}.{made.token}"
        part.write_text(content)
        with contextlib.suppress(FileExistsError):  # by another process at the same time
            os.link(part, out / MARKER)
        part.unlink()
        _STORES.pop(out, None)
        opened = store_of(out)
        assert opened is not None
        return opened

    @cached_property
    def system(self) -> tuple[Any, str]:
        """fsspec's file system, and where in it the results are."""
        import fsspec

        try:
            system, base = fsspec.url_to_fs(self.uri, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            extra = ": pip install 'lmim[s3]'" if self.uri.startswith("s3:") else ""
            raise UserError(f"--out {redacted(self.uri)}: {brief(error)}{extra}") from None
        except ValueError as error:
            raise UserError(f"--out {redacted(self.uri)}: {brief(error)}") from None
        return system, base.rstrip("/")

    @contextlib.contextmanager
    def _asked(self) -> Iterator[Any]:
        """The file system; what it cannot do is an error of one line.

        Raises:
            UserError: it does not answer, lets us not in, has no such bucket, and the like.
        """
        try:
            yield self.system[0]
        except (FileExistsError, UserError):
            raise
        except Exception as error:  # noqa: BLE001  each file system has classes of its own
            kind = Gone if isinstance(error, FileNotFoundError) else UserError
            kept = f"; what it lacks is kept in {self.out} and goes there when the same command runs again"
            hint = kept if (self.out / "trials").is_dir() else ""
            raise kind(f"--out {redacted(self.uri)}: {brief(error)}{hint}") from None

    def _path(self, *parts: object) -> str:
        return "/".join([self.system[1], *map(str, parts)])

    def _find(self, *parts: object) -> Versions:
        """The files under a place, by their names from there on."""
        place = self._path(*parts)
        with self._asked() as system:
            found = system.find(place, detail=True)
        # of a place where nothing is, some say that it is there itself
        start = f"{place}/"
        return {
            path.removeprefix(start): version_of(about)
            for path, about in found.items()
            if path.startswith(start)
        }

    def _objects(self, trial: str) -> Objects:
        found = self._find("trials", trial)
        found = {f"{trial}/{name}": version for name, version in found.items()}
        return trials_of(found).get(trial, Objects())

    def _get(self, file: Path, *parts: object) -> None:
        """Copy an object to a file, as a whole."""
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            with self._asked() as system:
                system.get_file(self._path(*parts), str(part))
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------ trials

    def publish(self, trial: str) -> None:
        """Say what a planned trial is, for whoever is to run it; and what a replay of it found."""
        folder = self.out / "trials" / trial
        with self._asked() as system:
            for name in filter(is_plain, names_of(folder, LOCAL)):
                system.pipe_file(self._path("trials", trial, name), (folder / name).read_bytes())

    def pull(self, trial: str) -> None:
        """Bring a trial's folder up to date with the store, but for its checkpoint.

        A folder that is ahead, as its process died before it had copied all, stays so, unless another
        process has gone on with the trial meanwhile.
        """
        for tries in range(5):
            try:
                self._pull(trial, self._objects(trial))
                return
            except Gone:  # one holder followed another while it was read
                if tries == 4:
                    raise

    def fetch(self, trial: str) -> None:
        """Have the checkpoint that goes with a folder which is up to date."""
        folder = self.out / "trials" / trial
        there, synced = self._objects(trial), Synced.read(folder)
        for name, version in there.left.items() if there.whole == synced.number else ():
            file = folder / name
            if name.endswith(LARGE) and not (synced.same_there(name, version) and file.exists()):
                self._get(file, "trials", trial, there.whole, name)
                here = stat_of(file)
                assert here is not None
                synced.note(name, version, here)
                synced.write(folder)

    def _pull(self, trial: str, there: Objects) -> None:
        folder = self.out / "trials" / trial
        synced, left = Synced.read(folder), there.left
        others = [name for name in synced.files if not is_plain(name)]
        moved = there.whole != synced.number or any(
            not synced.same_there(name, left.get(name, "")) for name in others
        )

        def is_same(name: str, version: str) -> bool:
            here = stat_of(folder / name)
            there_too = synced.same_there(name, version)
            return there_too and here is not None and (not moved or synced.same_here(name, here))

        wanted = [name for name, version in left.items() if not is_same(name, version)]
        for name in wanted if moved else ():
            if name.endswith(LARGE):  # of an older state, or of one that came to nothing
                (folder / name).unlink(missing_ok=True)
                synced.files.pop(name, None)
        wanted = [name for name in wanted if not name.endswith(LARGE)]
        plain = [name for name, version in there.plain.items() if not synced.same_there(name, version)]
        if not (moved or plain or wanted):
            return
        # The state is read first and comes last: it must not say more than the other files have.
        state = folder / f".{STATE}.pulled"
        if STATE in wanted:
            self._get(state, "trials", trial, there.whole, STATE)
        for name in plain:
            self._get(folder / name, "trials", trial, name)
        for name in wanted:
            if name != STATE:
                self._get(folder / name, "trials", trial, there.whole, name)
        for name in [name for name in names_of(folder, LOCAL) if moved and not is_plain(name)]:
            if name not in left:
                (folder / name).unlink()
        if STATE in wanted:
            state.replace(folder / STATE)
        synced.number = there.whole
        synced.files = {n: at for n, at in synced.files.items() if n in left or n in there.plain}
        versions = there.plain | left
        for name in [*plain, *wanted]:
            if (here := stat_of(folder / name)) is not None:
                synced.note(name, versions[name], here)
        synced.write(folder)

    def push(self, trial: str, number: int) -> None:
        """Copy what has changed to the store, in such an order that what is there can be gone on with.

        Raises:
            Leased: another process took the trial over.
        """
        folder = self.out / "trials" / trial
        there, synced = self._objects(trial), Synced.read(folder)
        if there.newest != number:
            raise Leased("another process took it over")
        before, left, mine = there.whole, there.left, there.held[number]
        with snapshot(folder) as (files, stats):
            here = set(files)
            unfetched = [name for name in left if name not in here and name not in synced.files]
            deleted = [name for name in synced.files if not is_plain(name) and name not in here]
            same = [name for name in here if synced.same_here(name, stats[name])]
            if before == synced.number != number and len(same) == len(here) and not deleted:
                return  # it was looked at, and that was all
            changed = here.difference(same) if synced.number == number else here
            with self._asked() as system:
                for name in sorted(changed, key=lambda name: (name == STATE, name.endswith(LARGE))):
                    if name == STATE:  # with which the copy is whole
                        for other in unfetched if before != number else ():
                            old, new = (self._path("trials", trial, n, other) for n in (before, number))
                            system.cp_file(old, new)
                    _put(system, files[name], self._path("trials", trial, number, name))
                kept = {*here, *unfetched, "lease", "released"}
                for name in [name for name in mine if name not in kept]:
                    system.rm_file(self._path("trials", trial, number, name))
                for older in there.held if STATE in here else ():
                    if older < number:
                        system.rm(self._path("trials", trial, older), recursive=True)
            if changed or deleted:
                now = self._find("trials", trial, number)
                synced.number = number
                plain = {name: at for name, at in synced.files.items() if is_plain(name)}
                synced.files = plain | {name: (now[name], *stats[name]) for name in here if name in now}
                synced.write(folder)

    # ------------------------------------------------------------------------------------ leases

    @contextlib.contextmanager
    def hold(self, trial: str) -> Iterator[None]:
        """Hold a trial, its folder brought up to date before and copied during and after.

        Call it only with the folder's own lock.

        Raises:
            Leased: another process holds it.
        """
        number = self._take(trial)
        try:
            self.pull(trial)
        except BaseException:  # nothing that is half old is to be copied
            with contextlib.suppress(UserError):
                self._release(trial, number)
            raise
        ended = threading.Event()
        regular = [
            (RENEW_SECONDS, partial(self._beat, trial, number)),
            (PUSH_SECONDS, partial(self.push, trial, number)),
        ]
        # one thread each, as a checkpoint may take longer to copy than a lease lasts
        threads = [threading.Thread(target=_repeat, args=(*one, ended), daemon=True) for one in regular]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()
            self._let_go(trial, number)

    def _take(self, trial: str) -> int:
        """The lease; waits until it is seen whether the one who has it lives."""
        seen = self._beats.get(trial)
        while True:
            there = self._objects(trial)
            self._watch(trial, there)
            if not self.is_held(trial, there):
                break
            now = self._beats[trial]
            seen = seen or now
            if (now.number, now.version) != (seen.number, seen.version):
                raise Leased(self._holder(trial, there.newest))
            time.sleep(min(1.0, LEASE_SECONDS / 10))
        number = there.newest + 1
        try:
            with self._asked() as system:
                system.pipe_file(self._path("trials", trial, number, "lease"), self._lease(0), mode="create")
        except FileExistsError:
            raise Leased(self._holder(trial, number)) from None
        # the number may have been another's who has been and gone, and with it what it left
        if (newest := self._objects(trial).newest) > number:
            with self._asked() as system:
                system.rm_file(self._path("trials", trial, number, "lease"))
            raise Leased(self._holder(trial, newest))
        return number

    def _lease(self, beat: int) -> bytes:
        about = {"mirror": self.token, "host": platform.node(), "pid": os.getpid(), "beat": beat}
        return json.dumps(about).encode()

    def _beat(self, trial: str, number: int) -> None:
        with self._asked() as system:
            place = self._path("trials", trial, number, "lease")
            system.pipe_file(place, self._lease(time.monotonic_ns()))

    def _about(self, trial: str, number: int) -> dict[str, Any]:
        """What a lease says; nothing where it is gone."""
        with self._asked() as system:
            try:
                about: dict[str, Any] = json.loads(
                    system.cat_file(self._path("trials", trial, number, "lease"))
                )
            except (FileNotFoundError, ValueError):
                return {}
        return about

    def _holder(self, trial: str, number: int) -> str:
        about = self._about(trial, number)
        return f"process {about.get('pid', '(unknown)')} on {about.get('host', '(unknown)')}"

    def _watch(self, trial: str, there: Objects) -> None:
        """Remember since when a heartbeat stands still."""
        if there.free:
            self._beats.pop(trial, None)
            return
        number, version = there.newest, there.held[there.newest].get("lease", "")
        old = self._beats.get(trial)
        if old is None or (old.number, old.version) != (number, version):
            known = old is not None and old.number == number
            mine = old.mine if old and known else self._about(trial, number).get("mirror") == self.token
            self._beats[trial] = Beat(number, version, time.monotonic(), mine)

    def is_held(self, trial: str, there: Objects | None = None) -> bool:
        """Whether a process elsewhere holds a trial, as far as was seen."""
        there, beat = there or self._known.get(trial), self._beats.get(trial)
        if there is None or there.free or beat is None or beat.mine:
            return False
        return time.monotonic() - beat.since < LEASE_SECONDS

    def _release(self, trial: str, number: int) -> None:
        with self._asked() as system:
            system.pipe_file(self._path("trials", trial, number, "released"), b"")

    def _let_go(self, trial: str, number: int) -> None:
        """The last copy, and the end of the lease; a store that does not answer is given some time."""
        until = time.monotonic() + 2 * PUSH_SECONDS
        while True:
            try:
                self.push(trial, number)
                self._release(trial, number)
            except Leased as error:
                log.warning("trial %s: %s, and what this one has done since is dropped", trial, error)
            except UserError:
                if time.monotonic() < until:
                    time.sleep(1)
                    continue
                raise
            return

    # ------------------------------------------------------------------------------ the whole sweep

    def refresh(self, patience: float | None = None) -> None:
        """Bring the trials that nobody here works on up to date, without their checkpoints.

        At most every few seconds, and for a tenth of the time; a store that does not answer is asked again
        later. With `patience` it is done now, and within so many seconds.

        Raises:
            UserError: it is not done within them.
        """
        begun = time.monotonic()
        if patience is None and begun < self._look_at:
            return
        while True:
            try:
                self._refresh()
                took = time.monotonic() - begun
                self._look_at = time.monotonic() + max(LOOK_SECONDS, 10 * took)
            except UserError as error:
                if patience is None:
                    log.warning("%s", error)
                    self._look_at = time.monotonic() + PUSH_SECONDS
                elif time.monotonic() - begun >= patience:
                    raise
                else:
                    time.sleep(1)
                    continue
            return

    def _refresh(self) -> None:
        found = trials_of(self._find("trials"))
        changed = [trial for trial, there in found.items() if there != self._known.get(trial)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            looked = dict(
                zip(changed, pool.map(lambda trial: self._look(trial, found[trial]), changed), strict=True)
            )
        for trial, there in found.items():
            self._watch(trial, there)
        here = (self.out / "trials").glob("[!.]*")
        for folder in [folder for folder in here if folder.name not in found and (folder / RECORD).exists()]:
            aside = folder.with_name(f".{folder.name}.deleted")  # there, by somebody
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        self._known = {trial: there for trial, there in found.items() if looked.get(trial, True)}

    def _look(self, trial: str, there: Objects) -> bool:
        """Bring a trial's folder up to date, if no process here works on it."""
        folder = self.out / "trials" / trial
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("a+b") as file:
            if not _lock(file):
                return False
            try:
                self._pull(trial, there)
            except Gone:  # since the store was listed
                return False
        return True

    def pull_rest(self) -> None:
        """Bring plans, reports and studies here."""
        synced = Synced.read(self.out)
        with self._asked() as system:
            try:
                entries = system.ls(self._path(), detail=True)
            except FileNotFoundError:
                return
        for entry in entries:
            name = entry["name"].rstrip("/").rpartition("/")[2]
            if name in LOCAL_RESULTS or name.startswith("."):
                continue
            found = {name: version_of(entry)}
            if entry["type"] == "directory":
                found = {f"{name}/{path}": version for path, version in self._find(name).items()}
            for path, version in found.items():
                if not synced.same_there(path, version):
                    self._get(self.out / path, path)
                    here = stat_of(self.out / path)
                    assert here is not None
                    synced.note(path, version, here)
        synced.write(self.out)

    def push_rest(self) -> None:
        """Copy plans, reports and studies to the store."""
        synced = Synced.read(self.out)
        with self._asked() as system:
            for name in names_of(self.out, LOCAL_RESULTS):
                here = stat_of(self.out / name)
                if here is not None and not synced.same_here(name, here):
                    _put(system, self.out / name, self._path(name))
                    synced.note(name, version_of(system.info(self._path(name))), here)
        synced.write(self.out)

    def wish(self, name: str) -> None:
        """Tell the workers of every host that a driver wants its trials to stop."""
        with self._asked() as system:
            system.pipe_file(self._path("stops", name), b"")

    def is_wished(self, name: str) -> bool:
        """Whether it does; no, where the store does not answer."""
        try:
            return bool(self.system[0].exists(self._path("stops", name)))
        except Exception as error:  # noqa: BLE001  each file system has classes of its own
            log.warning("%s: %s", redacted(self.uri), brief(error))
            return False

    def unwish(self, name: str) -> None:
        """Take it back."""
        self.remove(f"stops/{name}")

    def remove(self, name: str) -> None:
        """Remove what is under a name, if anything is."""
        with self._asked() as system:
            if system.exists(self._path(name)):
                system.rm(self._path(name), recursive=True)


def _lock(file: BinaryIO) -> bool:
    """Whether this process got a trial's lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _put(system: Any, what: Path | bytes, place: str) -> None:
    """Copy a file, or its content, to an object."""
    if isinstance(what, bytes):
        system.pipe_file(place, what)
    else:
        system.put_file(str(what), place)


def _repeat(seconds: float, work: Callable[[], None], ended: threading.Event) -> None:
    """Do it regularly until the end; a store that does not answer is asked again the next time."""
    while not ended.wait(seconds):
        try:
            work()
        except Leased:
            return
        except UserError as error:
            log.warning("%s", error)


_STORES: dict[Path, Store | None] = {}


def store_of(out: Path) -> Store | None:
    """The store that a results folder mirrors; None where the results lie there themselves."""
    out = out.resolve()
    if out not in _STORES:
        try:
            about = json.loads((out / MARKER).read_bytes())
            _STORES[out] = Store(about["uri"], out, about["token"])
        except FileNotFoundError:
            _STORES[out] = None
    return _STORES[out]


@contextlib.contextmanager
def stored(out: Path) -> Iterator[None]:
    """What a command leaves in a results folder besides trials goes to the folder's store, if it has one."""
    try:
        yield
    finally:
        if (store := store_of(out)) is not None:
            store.push_rest()
