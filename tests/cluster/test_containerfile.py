"""The images: no fault that hadolint knows, from pinned things, of files that are there, and not as root."""

import re
import subprocess

from tests.sweep.running import REPOSITORY

FILE = REPOSITORY / "cluster" / "Containerfile"
LINES = FILE.read_text().replace("\\\n", " ").splitlines()
PINNED = {line.split("==")[0] for line in (REPOSITORY / "constraints.txt").read_text().splitlines()}


def words(instruction: str) -> list[list[str]]:
    """The words of each such instruction, options left out."""
    found = [line.split()[1:] for line in LINES if line.startswith(f"{instruction} ")]
    return [[word for word in one if not word.startswith("--")] for one in found]


def test_hadolint_finds_nothing() -> None:
    """Otherwise an image is larger, less sure or less the same each time than it could be."""
    done = subprocess.run(["hadolint", str(FILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_it_is_made_from_is_pinned() -> None:
    """Otherwise the image of tomorrow is another one, and trials of today's do not count in it."""
    stages = {one[2] for one in words("FROM") if len(one) == 3}
    outside = [one[0] for one in words("FROM") if one[0] not in stages]
    assert all(re.search(r":\d+\.\d+\.\d+-slim-\w+$", image) for image in outside)
    installs = re.findall(r"pip install ([^&;\n]*)", "\n".join(LINES))
    assert len(installs) == 3
    for install in installs:
        assert "-c constraints.txt" in install or "-r /tmp/torch.txt" in install
        named = [word for word in install.split() if re.fullmatch(r"[a-z][\w-]*", word)]
        assert set(named) <= PINNED
    assert {"torch", "torchvision", "ray", "aiohttp-cors"} <= PINNED


def test_what_it_copies_is_there() -> None:
    """Otherwise it does not build; or it takes along results and secrets that lie beside the source."""
    copied = [name for one in words("COPY") for name in one[:-1]]
    assert all((REPOSITORY / name).exists() for name in copied)
    assert not {".", "cluster", ".env", "results"} & set(copied)


def test_no_image_runs_as_root() -> None:
    """Otherwise who breaks out of a trial owns the host."""
    user = {}
    for line in LINES:
        if line.startswith("FROM "):
            stage = line.split()[-1]
        if line.startswith("USER "):
            user[stage] = line.split()[1]
    assert user == {"tracking": "1000:1000", "sweep": "1000:1000"}
