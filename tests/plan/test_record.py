"""What is kept of a sweep: where, of which file, and when its claims were stated."""

import doctest
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lmim.errors import UserError
from lmim.plan import record
from lmim.plan.record import Record, check_file, kept, place

if TYPE_CHECKING:
    from tests.plan.conftest import Folder

AXES = "axes: {loss: [mse, cosine, smooth_l1]}\n"


def keep(found: Record, out: Path) -> None:
    found.file(out).parent.mkdir(parents=True, exist_ok=True)
    found.file(out).write_text(found.model_dump_json())


def test_examples() -> None:
    """An example in a docstring that is wrong misleads whoever reads it."""
    assert doctest.testmod(record).failed == 0


def test_a_claim_keeps_the_time_at_which_it_was_first_stated(folder: "Folder", tmp_path: Path) -> None:
    """Else a claim of results that were in could pass for a prediction, or a prediction for such a claim."""
    before = Record.of(folder.load(AXES + "claims: [mse > cosine, mse collapsed]\n"))
    before = before.model_copy(update={"stated": dict.fromkeys(before.stated, 5.0)})
    keep(before, tmp_path)
    # white space is no other claim; another side is, and so is another metric; what was dropped is remembered
    text = "claims: ['mse  >   cosine', cosine > mse, mse > cosine on nn_top1]\n"
    now = Record.of(folder.load(AXES + text, scale="demo", sets=["optim.epochs=1"])).since(
        kept("test", tmp_path)
    )
    old = {claim for claim, at in now.stated.items() if at == 5.0}
    assert old == {"mse > cosine on eval/knn_top1", "mse collapsed"}
    assert now.stated.keys() - old == {"cosine > mse on eval/knn_top1", "mse > cosine on eval/nn_top1"}
    other = Record.of(folder.load(AXES + "metric: nn_top1\nclaims: [mse > cosine]\n"))
    assert other.since([now]).stated["mse > cosine on eval/nn_top1"] > 5.0


def test_an_older_record_accuses_nobody(folder: "Folder", tmp_path: Path) -> None:
    """Else each claim of a sweep run before records told the time would be marked as made afterwards."""
    found = Record.of(folder.load(AXES + "claims: [mse > cosine]\n"))
    keep(found, tmp_path)
    file = found.file(tmp_path)
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "stated"}))
    again = found.since(kept("test", tmp_path))
    assert again.stated == {}
    assert found.since([again]).stated == {}


def test_settings_have_a_place_of_their_own() -> None:
    """Else a call with --set overwrites the report of the one without, or makes a folder that cannot be."""
    places = [
        place("demo", settings)
        for settings in (
            {},
            {"optim.epochs": "1"},
            {"optim.epochs": "2"},
            {"loss": "../mine.py:l1"},
            {"loss": "..-mine.py-l1"},
            {f"key{number}": "value" for number in range(30)},
            {f"key{number}": "value" for number in range(31)},
        )
    ]
    assert len(set(places)) == len(places)
    assert all(len(name) <= record.LONGEST and "/" not in name for name in places)
    assert place("demo", {"run.threads": "2", "data.path": "/data"}) == "demo", "they change no result"
    assert place("demo", {"b": "1", "a": "2"}) == place("demo", {"a": "2", "b": "1"})


def test_another_file_of_the_name_is_refused(folder: "Folder", tmp_path: Path) -> None:
    """Else two questions overwrite each other's report."""
    mine = folder.load(AXES)
    keep(Record.of(mine), tmp_path)
    check_file(mine, tmp_path)
    (folder.root / "elsewhere").mkdir()
    text = mine.path.read_text().replace("base: base.yaml", "base: ../base.yaml")
    path = folder.write("elsewhere/mine.yaml", text)
    other = replace(mine, path=path)
    with pytest.raises(UserError, match=rf"name: .* holds the results of {mine.path}, which is named test"):
        check_file(other, tmp_path)
    check_file(other, tmp_path / "out")  # with an --out of its own

    original = mine.path.read_text()
    folder.write("sweep.yaml", text)  # a copy
    check_file(other, tmp_path)
    folder.write("sweep.yaml", original.replace("name: test", "name: test-2"))  # named anew
    check_file(other, tmp_path)
    mine.path.unlink()  # moved
    check_file(other, tmp_path)
