"""An evaluation is what its sweep file says, keeps its identity, and its result survives the disk."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmim.errors import UserError
from lmim.metrics import Metric
from lmim.trial.evaluation import (
    EntryError,
    Evaluation,
    Result,
    read_evaluations,
    read_result,
    write_result,
)
from lmim.variants import choices

GAP = """
from typing import Literal
METRICS = {"gap": {"label": "distance gap", "better": "higher"}}
def gap(frozen, *, scale: float = 1.0, kind: Literal["cosine", "l2"] = "l2"):
    return {"gap": scale}
"""


def one(entry: object, sources: Mapping[str, str] = {}) -> Evaluation:
    [found] = read_evaluations([entry], sources)
    return found


def test_the_default_is_every_protocol() -> None:
    """A sweep file that says nothing would get a table without columns."""
    found = read_evaluations()
    assert [each.protocol for each in found] == ["nn", "knn", "linear"]
    assert [name for each in found for name in each.metrics] == ["nn_top1", "knn_top1", "linear_top1"]
    assert found[1].settings == {"k": 20}


def test_a_setting_at_its_neutral_value_is_not_in_the_identity() -> None:
    """A setting that is new, or is written out, would have every old trial judged again."""
    plain = one("knn")
    assert plain.identity("abc", "1") == "fb5bb921"
    assert one({"knn": {"k": 20}}).identity("abc", "1") == plain.identity("abc", "1")
    assert Evaluation("knn").identity("abc", "1") == plain.identity("abc", "1")
    whole, real = (one({"m.py:gap": {"scale": scale}}, {"m.py": GAP}) for scale in (2, 2.0))
    assert whole.identity("abc", "1") == real.identity("abc", "1")


def test_whatever_the_figures_depend_on_is_in_the_identity() -> None:
    """A result of other data, another split or other code of the user's would be taken for this one."""
    plain, own = one("knn"), one("m.py:gap", {"m.py": GAP})
    changed = one("m.py:gap", {"m.py": GAP.replace(": scale}", ": 2}")})
    commented = one("m.py:gap", {"m.py": GAP + "# nothing new\n"})
    identities = [
        plain.identity("abc", "1"),
        plain.identity("abd", "1"),
        plain.identity("abc", "2"),
        one({"knn": {"k": 5}}).identity("abc", "1"),
        replace(plain, split="val").identity("abc", "1"),
        one("nn").identity("abc", "1"),
        own.identity("abc", "1"),
        changed.identity("abc", "1"),
        one("n.py:gap", {"n.py": GAP}).identity("abc", "1"),
    ]
    assert len(set(identities)) == len(identities)
    assert all(re.fullmatch("[0-9a-f]{8}", identity) for identity in identities)
    assert commented.identity("abc", "1") == own.identity("abc", "1")


def test_a_result_lies_in_the_trials_folder_under_a_plain_name(tmp_path: Path) -> None:
    """A colon or a path in a file's name would break it on some disks, or put it elsewhere."""
    own = one("pkg/m.py:gap", {"pkg/m.py": GAP})
    file = own.file(tmp_path / "abc", "1")
    assert file == tmp_path / "abc" / "evaluations" / f"gap-{own.identity('abc', '1')}.json"


@pytest.mark.parametrize(
    ("entry", "split", "metric"),
    [
        ("knn", "test", Metric("eval/knn_top1", "k-NN top-1", "%", "higher")),
        ({"knn": {"k": 5}}, "test", Metric("eval/knn_top1.k5", "k-NN top-1, k=5", "%", "higher")),
        ({"knn": {"k": 5}}, "val", Metric("val/knn_top1.k5", "k-NN top-1, k=5, validation", "%", "higher")),
        ("m.py:gap", "test", Metric("eval/gap", "distance gap", "", "higher")),
        (
            {"m.py:gap": {"kind": "cosine", "scale": 0.5}},
            "test",
            Metric("eval/gap.scale0.5.kind-cosine", "distance gap, scale=0.5, kind=cosine", "", "higher"),
        ),
    ],
)
def test_metrics_are_named_by_what_is_not_neutral(entry: object, split: Any, metric: Metric) -> None:
    """Two settings of a protocol would overwrite each other in MLflow, or a name be refused there."""
    [found] = replace(one(entry, {"m.py": GAP}), split=split).metrics.values()
    assert found == metric
    assert re.fullmatch(r"[\w\-. :/]+", found.name, re.ASCII)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["nn", "knnn"], f"expected one of {', '.join(choices('evaluate'))}, found knnn; did you mean knn?"),
        (["nn", "features"], f"expected one of {', '.join(choices('evaluate'))}, found features"),
        (
            ["nn", {"knn": {"kk": 5}}],
            "knn: unknown setting kk; expected k, layer, features, norm; did you mean k?",
        ),
        (["nn", {"linear": {"k": 5}}], "linear: unknown setting k; expected layer"),
        (["nn", {"knn": {"k": "five"}}], "knn.k: expected an integer, found five"),
        (["nn", {"knn": {"k": True}}], "knn.k: expected an integer, found true"),
        (["nn", {"knn": {"k": 0}}], "knn.k: expected greater than 0, found 0"),
        (["nn", {"m.py:gap": {"kind": "l3"}}], "m.py:gap.kind: expected 'cosine' or 'l2', found l3"),
        (["nn", {"knn": None}], "expected a protocol, or one with its settings such as knn: {k: 5}"),
        (["nn", {"knn": {}, "linear": {}}], "expected a protocol, or one with its settings"),
        (["knn", {"knn": {"k": 20}}], "duplicate knn: expected once with the same settings"),
        (["nn", "no.py:gap"], "expected the text of no.py in sources"),
        (["nn", "m.py:gab"], "expected a function or class gab in m.py, found gap"),
        (["nn", "bare.py:f"], 'bare.py:f: expected in its file a literal such as METRICS = {"gap": {"label"'),
        (["nn", "odd.py:f"], "odd.py:f: expected in its file a literal such as METRICS ="),
        (["knn", "rank.py:f"], "found eval/knn_top1, which is that of knn"),
        (["nn", "made.py:f"], "made.py:1: VIEW: expected a literal, which is read without running it"),
        (["nn", "view.py:f"], "view.py:f.VIEW: unknown setting nrom; expected layer, features, norm"),
        (["nn", "set.py:f"], 'set.py:f: expected in its file such as VIEW = {"norm": True}, found norm'),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(entries: list[object], message: str) -> None:
    """A typing error would show after hours of training, as a traceback."""
    sources = {
        "m.py": GAP,
        "bare.py": "def f(frozen): ...",
        "odd.py": 'METRICS = {"a@b": {"label": "x"}}\ndef f(frozen): ...',
        "rank.py": 'METRICS = {"knn_top1": {"label": "x"}}\ndef f(frozen): ...',
        "made.py": 'VIEW = dict(norm=True)\nMETRICS = {"a": {"label": "x"}}\ndef f(frozen): ...',
        "view.py": 'VIEW = {"nrom": True}\nMETRICS = {"a": {"label": "x"}}\ndef f(frozen): ...',
        "set.py": 'VIEW = "norm"\nMETRICS = {"a": {"label": "x"}}\ndef f(frozen): ...',
    }
    with pytest.raises(EntryError, match=re.escape(message)) as caught:
        read_evaluations(entries, sources)
    assert caught.value.entry == 1
    assert "\n" not in str(caught.value)


def test_a_view_that_only_some_objectives_have_is_asked_of_those_alone() -> None:
    """A protocol that looks at class tokens would fail every trial of pixels; one after the norm would miss
    the baseline that has none."""
    source = 'METRICS = {"a": {"label": "x"}}\ndef f(frozen): ...\nVIEW = '
    cls, norm = (
        read_evaluations(["m.py:f"], {"m.py": source + view})[0]
        for view in ('{"features": "cls"}', '{"norm": True}')
    )
    assert (cls.methods, norm.methods) == (("tokens",), ())
    assert one({"nn": {"norm": True}}).methods == ("tokens",)


def test_a_metric_of_the_trainers_is_not_taken() -> None:
    """A trial would count as collapsed by the figure of a protocol."""
    source = 'METRICS = {"rank_ratio": {"label": "x"}}\ndef f(frozen): ...'
    with pytest.raises(EntryError, match="found eval/rank_ratio, which is that of the trainer"):
        read_evaluations(["m.py:f"], {"m.py": source})


RESULT = Result(
    protocol="knn",
    settings={"k": 5},
    split="test",
    data_version="1",
    metrics={"eval/knn_top1.k5": 12.3456789012345678},
    sample={"eval/knn_top1.k5": math.nan},
    seconds=1.5,
    code="0123456789",
    commit="abc",
    torch="2.15.0",
    timm="1.0.31",
    device="x86_64",
    date="2026-11-21T10:00:00+00:00",
)


def test_a_result_survives_the_disk_to_the_last_digit(tmp_path: Path) -> None:
    """The table would round what was measured, or the file be no JSON where a figure is not finite."""
    file = tmp_path / "abc" / "evaluations" / "knn-fb5bb921.json"
    assert read_result(file) is None
    write_result(file, RESULT)
    found = read_result(file)
    assert found is not None
    assert found.model_dump(exclude={"sample"}) == RESULT.model_dump(exclude={"sample"})
    assert math.isnan(found.sample["eval/knn_top1.k5"])
    assert '"NaN"' in file.read_text()
    assert [other.name for other in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("content", [b"", b"\xff", b'{"protocol": "knn"', b'{"protocol": "knn"}'])
def test_a_damaged_result_is_named(tmp_path: Path, content: bytes) -> None:
    """The user would get a traceback instead of the file to delete."""
    file = tmp_path / "knn-fb5bb921.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"knn-fb5bb921\.json: damaged .*; delete it"):
        read_result(file)
