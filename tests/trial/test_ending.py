"""A rule ends what has collapsed, and nothing that dips and learns."""

import pytest
from pydantic import ValidationError

from lmim.trial.ending import Collapse, Ending
from lmim.trial.folder import Row


def journal(*looks: tuple[float, float]) -> list[Row]:
    """Rows of rank and cosine at each look, with the rows of training between them."""
    rows = []
    for number, (rank, cosine) in enumerate(looks):
        rows.append(Row(20 * number, 0.0, {"train/loss": 1.0}))
        measures = {"collapse/rank": rank, "collapse/image_cosine": cosine}
        rows.append(Row(20 * number, 0.0, measures))
    return rows


@pytest.mark.parametrize(
    ("looks", "ends"),
    [
        ([(10, 0.6), (4, 0.99), (4, 0.99), (4, 0.99)], True),
        ([(10, 0.6), (4, 0.99), (4, 0.99)], False),  # not for long enough
        ([(10, 0.6), (4, 0.99), (4, 0.99), (9, 0.5)], False),  # it has come back
        ([(10, 0.6), (4, 0.99), (9, 0.5), (4, 0.99), (4, 0.99)], False),  # not in a row
        ([(10, 0.6), (2, 0.3), (2, 0.3), (2, 0.3)], False),  # few directions, as a classifier's
        ([(10, 0.6), (9, 0.99), (9, 0.99), (9, 0.99)], False),  # a narrow cone
        ([(10, 0.6), (4, float("nan")), (4, 0.99), (4, 0.99)], False),
        ([(10, 0.6)], False),
        ([], False),
    ],
)
def test_both_measures_must_be_down_for_some_looks(looks: list[tuple[float, float]], ends: bool) -> None:
    """Otherwise a trial that would have learned is cut off, and its arm is judged by half of it."""
    found = Ending(collapse=Collapse()).verdict(journal(*looks))
    assert bool(found) == ends
    assert Ending().verdict(journal(*looks)) == ""


def test_the_reason_says_what_was_measured() -> None:
    """Otherwise nobody can tell from the state why a trial has so few steps."""
    rule = Collapse(rank=0.25, patience=1)
    assert rule.verdict(journal((8, 0.5), (1, 0.96))) == (
        "collapsed: effective rank below 0.25 of its first value and cosine between images above 0.95 "
        "for 1 look"
    )


def test_a_rule_travels_as_json() -> None:
    """Otherwise a worker on another machine decides by another rule than the serial executor."""
    rule = Ending(collapse=Collapse(rank=0.3))
    assert Ending.model_validate_json(rule.model_dump_json()) == rule


def test_a_rule_ends_no_trial_that_is_not_called_collapsed() -> None:
    """Otherwise a trial ended for its collapse stands in the table with a rank ratio that is none."""
    with pytest.raises(ValidationError, match="less than or equal to"):
        Collapse(rank=0.6)
