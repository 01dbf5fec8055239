"""Claims: read as they were written, and about arms that there are."""

from typing import TYPE_CHECKING

import pytest

from lmim.plan.claims import parse_claim, selects

if TYPE_CHECKING:
    from tests.plan.conftest import Folder


AXES = "axes: {loss: [mse, cosine]}\n"


def test_claims_are_read() -> None:
    """Else a claim would be tested on another arm, in another direction or on another metric."""
    claim = parse_claim("gap=1 cues=true > gap=0 cues=true on linear_top1")
    assert (claim.left, claim.op, claim.right) == ("gap=1 cues=true", ">", "gap=0 cues=true")
    assert claim.metric == "linear_top1"
    collapsed = parse_claim("ema not collapsed")
    assert (collapsed.left, collapsed.op, collapsed.right) == ("ema", "not collapsed", None)
    assert parse_claim("joint collapsed").op == "collapsed"


def test_a_side_selects_by_value_not_by_spelling() -> None:
    """Else `similarity=0` would miss the arm whose value is 0.0, and true the one that is 1."""
    assert selects("similarity=0", "x", {"mask.similarity": 0.0})
    assert selects("mask.similarity=0.10", "x", {"mask.similarity": 0.1})
    assert not selects("gap=true", "x", {"mask.gap": 1})
    assert not selects("", "x", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            AXES + "claims:\n  - mse > cosin\n",
            "sweep.yaml:5: claims.0: expected an arm (mse, cosine), found cosin; did",
        ),
        (
            "axes: {mask.gap: [0, 1], decoder.cues: [true, false]}\nclaims: [gapp=1 > gap=0]\n",
            "sweep.yaml:4: claims.0: expected an arm (gap=0, cues=true, cues=false, gap=1), found gapp=1; "
            "did you mean gap=1?",
        ),
        (
            "axes: {encoder.depth: [1, 2], projector.depth: [0, 3]}\nclaims: [depth=3 > depth=0]\n",
            "sweep.yaml:4: claims.0: depth is encoder.depth or projector.depth: write it in full",
        ),
        (AXES + "claims: [mse beats cosine]\n", "sweep.yaml:4: claims.0: expected A > B"),
        (AXES + "claims: [mse > cosine on knn]\n", "sweep.yaml:4: claims.0: expected one of nn_top1"),
        (AXES + "claims: [mse > mse]\n", "sweep.yaml:4: claims.0: expected two sides without a common arm"),
    ],
)
def test_a_mistaken_claim_is_named_with_its_line(folder: "Folder", text: str, message: str) -> None:
    """Else a verdict would be missing after hours of training, for a letter."""
    found = folder.error(text)
    assert message in found
    assert found.startswith("sweep.yaml")


@pytest.mark.parametrize("claim", ["mse collapsed", "mse not collapsed", "mse > cosine on rank_ratio"])
def test_a_claim_about_collapse_stands_beside_no_rule_that_ends_the_collapsed(
    folder: "Folder", claim: str
) -> None:
    """What was cut off for its collapse would be the proof of it."""
    text = AXES + "end_collapsed: true\nclaims:\n  - mse > cosine\n"
    assert folder.load(text).ending
    assert folder.error(text + f"  - {claim}\n") == (
        "sweep.yaml:7: claims.1: expected no claim about collapse with end_collapsed (sweep.yaml:4), found "
        + claim
    )


def test_a_claim_that_cannot_be_judged_is_refused(folder: "Folder") -> None:
    """It would be undecided for ever, and the sweep would have been trained for it."""
    text = "axes: {objective: [supervised, latent_mim]}\nevaluate: [top1, knn]\nbaselines: [raw_pixels]\n"
    assert [arm.name for arm in folder.load(text).arms] == ["supervised", "latent_mim", "raw_pixels"]
    assert folder.load(text + "claims: [supervised > latent_mim]\n").claims
    assert folder.error(text + "claims:\n  - supervised > raw_pixels on top1\n") == (
        "sweep.yaml:7: claims.0: expected arms with logits for top1, found raw_pixels, whose objective "
        "raw_pixels has none"
    )
