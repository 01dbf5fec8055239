"""Errors of one line, for people: what is wrong, where, and what to do."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn, Protocol


class UserError(Exception):
    """What the user can mend: one line of what is wrong, where, and what to do (exit code 2)."""


def fail(where: str, message: str) -> NoReturn:
    """Raise a UserError that is one printable line whatever the file held."""
    text = f"{where}: {message}"
    raise UserError("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def show(value: object) -> str:
    """A value as it is named in a message: as YAML would write it, and short."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = word(value)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(found: object, names: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no name is near."""
    text, known = str(found)[:100], list(names)
    # a bare leaf is the likeliest slip, and difflib alone finds `epochs` far from `optim.epochs`
    near = [name for name in known if "." in name and name.rpartition(".")[2] == text]
    near = near or difflib.get_close_matches(text, known[:1000], 1, 0.6)
    near = near or [name for name in known if len(text) > 1 and name.startswith(text)]
    return f"; did you mean {near[0]}?" if near else ""


def word(value: object) -> str:
    """A scalar as it stands in an arm's name: `true`, `0.1`, `0` for 0.0.

    >>> [word(v) for v in (True, 0.0, 0.1, 3, "mse", None)]
    ['true', '0', '0.1', '3', 'mse', 'null']
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


class Seeded(Protocol):
    """An arm with a seed: a trial, whoever keeps it."""

    @property
    def arm(self) -> str:
        """Its name."""

    @property
    def seed(self) -> int:
        """Its number."""


def listed(trials: Sequence[Seeded]) -> str:
    """Trials by their arms: `4 trials: mse (seed 1, 2), cosine (seed 1, 2)`."""
    arms: dict[str, list[str]] = {}
    for trial in trials:
        arms.setdefault(trial.arm, []).append(str(trial.seed))
    named = [f"{arm} (seed {', '.join(seeds)})" for arm, seeds in arms.items()]
    some = ", ".join(named[:10]) + (", ..." if named[10:] else "")
    return f"{count(len(trials), 'trial')}: {some}".removesuffix(": ")


def count(number: int, word: str) -> str:
    """A number of things.

    >>> count(1, "trial"), count(2, "trial")
    ('1 trial', '2 trials')
    """
    return f"{number} {word}{'' if number == 1 else 's'}"


def redacted(text: str) -> str:
    """Text without the user and password that a URI in it may carry.

    >>> redacted("no https://me:s@cret@host/mlflow there")
    'no https://host/mlflow there'
    >>> redacted("postgresql:///mlflow?user=me&password=secret&host=/run")
    'postgresql:///mlflow?user=me&password=...&host=/run'
    """
    return re.sub(r"(?<=[?&]password=)[^&\s]*", "...", re.sub(r"(?<=://)[^/\s]*@", "", text))


def brief(error: Exception) -> str:
    """Another library's error in one short line, without passwords; of a connection that failed, its cause.

    >>> brief(OSError("HTTPConnectionPool: no (Caused by NewError('Connection(x): Connection refused'))"))
    'Connection refused'
    """
    text = redacted(" ".join(str(error).split()).partition(" [SQL: ")[0])
    if "(Caused by " in text:
        text = text.rpartition("(Caused by ")[2].rpartition(": ")[2].rstrip("\"')")
    return text if len(text) <= 160 else f"{text[:157]}..."


FULL = re.compile(
    r"\b(OutOfMemoryError|MemoryError)\b|CUDA error: out of memory|[Cc]an(no|')t allocate memory"
    "|_STATUS_ALLOC_FAILED"
)
"""What torch, numpy, CUDA's libraries and the kernel say when memory is full."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of the GPU, or of the machine, is full.

    Known by its words, as another process' error comes as text, and CUDA's libraries have no class for it.

    >>> out_of_memory(RuntimeError("process 1 of the trial: OutOfMemoryError: CUDA out of memory."))
    True
    """
    return isinstance(error, MemoryError) or bool(FULL.search(f"{type(error).__name__}: {error}"))


def cause(error: Exception) -> str:
    """An exception in one line.

    >>> cause(ValueError("no such image\\nat all"))
    'ValueError: no such image'
    """
    first = next(iter(str(error).splitlines()), "")
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}".rstrip(": ")
