"""Claims: what the author of a sweep expects, stated before it runs, and the arms that it is said of."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from lmim.config import Config
from lmim.errors import fail, nearest, show, word
from lmim.metrics import RANK_RATIO, full_name
from lmim.plan.located_yaml import scalar
from lmim.plan.sweep_file import Spec

Arms = Mapping[str, Mapping[str, Any]]
"""The arms' names, and the axes of each."""


@dataclass(frozen=True)
class Claim:
    """One expectation. Each side names an arm, or selects several by `key=value` terms."""

    text: str
    left: str
    op: Literal[">", "<", "collapsed", "not collapsed"]
    right: str | None = None
    metric: str | None = None
    """Only where the claim says `on METRIC`; else the sweep's metric counts."""


CLAIM = re.compile(
    r"(?P<left>\S.*?)\s+(?:(?P<verdict>not collapsed|collapsed)"
    r"|(?P<op>[<>])\s+(?P<right>\S.*?)(?:\s+on\s+(?P<metric>\S+))?)\s*"
)


def parse_claim(text: str) -> Claim:
    """Read `A > B`, `A < B`, `A > B on METRIC`, `A collapsed` or `A not collapsed`.

    >>> parse_claim("gap=1 > gap=0 on linear_top1").metric
    'linear_top1'

    Raises:
        ValueError: for anything else.
    """
    match = CLAIM.fullmatch(text)
    if match is None:
        raise ValueError("expected A > B, A < B, A collapsed or A not collapsed")
    op = cast(Literal[">", "<", "collapsed", "not collapsed"], match["verdict"] or match["op"])
    return Claim(text, match["left"], op, match["right"], match["metric"])


def statement(text: str, metric: str) -> str:
    """A claim with its metric, which is the sweep's where it names none: what makes it this claim.

    >>> statement("a  > b", "knn_top1"), statement("a > b on rank", "knn_top1"), statement("a collapsed", "x")
    ('a > b on eval/knn_top1', 'a > b on eval/rank', 'a collapsed')
    """
    claim, words = parse_claim(text), " ".join(text.split())
    if claim.right is None:
        return words
    return f"{words.removesuffix(f' on {claim.metric}')} on {full_name(claim.metric or metric)}"


def sayable(name: str) -> bool:
    """Whether claims can say an arm's name: they read it back whole, and not as terms.

    >>> [name for name in ("small", "a=1", "a > b", "a on b", "") if sayable(name)]
    ['small']
    """
    try:
        said = [parse_claim(f"{name} {rest}") for rest in (f"> {name}", "collapsed", "not collapsed")]
    except ValueError:
        return False
    whole = all((claim.left, claim.right or name, claim.metric) == (name, name, None) for claim in said)
    return whole and "=" not in name and name.isprintable()


def selects(side: str, name: str, axes: Mapping[str, Any]) -> bool:
    """Whether one side of a claim selects an arm: by its name, or by terms that all hold.

    >>> selects("gap=1", "gap=1 similarity=0.1", {"mask.gap": 1, "mask.similarity": 0.1})
    True
    >>> selects("mask.gap=0", "gap=1 similarity=0.1", {"mask.gap": 1, "mask.similarity": 0.1})
    False
    """
    if side == name:
        return True
    terms = [term.partition("=") for term in side.split()]
    return bool(terms) and all(
        equals
        and any(
            term.removesuffix(".kind") in (key, key.rpartition(".")[2]) and word(wanted) == word(axes[key])
            for key in axes
        )
        for term, equals, wanted in ((t, e, _lenient(v)) for t, e, v in terms)
    )


def _lenient(text: str) -> str | int | float | bool | None:
    try:
        return scalar(text)
    except ValueError:
        return text


def read_claims(spec: Spec, arms: Arms, configs: Mapping[str, Config]) -> tuple[Claim, ...]:
    """The claims of a sweep file, each about arms that there are and that can be judged so."""
    claims = []
    judges = {metric.name: one for one in spec.evaluations for metric in one.metrics.values()}
    names = _sides(arms)
    for number, text in enumerate(spec.file.claims):
        where = f"{spec.sheet.where('claims', number)}: claims.{number}"
        try:
            claim = parse_claim(text)
        except ValueError as error:
            fail(where, f"{error}, found {show(text)}")
        if claim.metric is not None:
            spec.sheet.metric(claim.metric, where)
        for leaf in re.findall(r"(?<!\S)(\w+)=", f"{claim.left} {claim.right or ''}"):
            meant = sorted({key for axes in arms.values() for key in axes if key.rpartition(".")[2] == leaf})
            if len(meant) > 1:
                fail(where, f"{leaf} is {' or '.join(meant)}: write it in full")
        sides = [side for side in (claim.left, claim.right) if side is not None]
        chosen = [_selected(side, arms) for side in sides]
        for side, found in zip(sides, chosen, strict=True):
            if not found:
                fail(where, f"expected an arm ({_some(names)}), found {show(side)}{nearest(side, names)}")
        if len(chosen) == 2 and chosen[0] & chosen[1]:
            fail(
                where, f"expected two sides without a common arm, found {min(chosen[0] & chosen[1])} on both"
            )
        judge = judges.get(full_name(claim.metric or spec.file.metric)) if claim.right else None
        for arm in (arm for arm in arms if judge and any(arm in side for side in chosen)):
            if judge and not judge.applies(configs[arm]):
                has = f"{arm}, whose objective {configs[arm].objective} has none"
                fail(
                    where, f"expected arms with {', '.join(judge.methods)} for {judge.protocol}, found {has}"
                )
        if spec.file.end_collapsed and _about_collapse(claim, spec.file.metric):
            rule = spec.sheet.where("end_collapsed")
            fail(where, f"expected no claim about collapse with end_collapsed ({rule}), found {show(text)}")
        claims.append(claim)
    return tuple(claims)


def _about_collapse(claim: Claim, metric: str) -> bool:
    """Whether a trial that is ended for its collapse would make the claim true by being ended."""
    name = full_name(claim.metric or metric)
    return claim.right is None or name == RANK_RATIO or name.startswith("collapse/")


def read_only(spec: Spec, arms: Arms) -> set[str]:
    """The arms that --only names; all where it is not given."""
    if spec.only is None:
        return set(arms)
    kept: set[str] = set()
    names = _sides(arms)
    for wanted in spec.only:
        found = _selected(wanted, arms)
        if not found:
            fail(
                f"--only {wanted}",
                f"expected an arm of {spec.sheet.path} ({_some(names)}), found none of that name"
                + nearest(wanted, names),
            )
        kept |= found
    return kept


def _selected(side: str, arms: Arms) -> set[str]:
    return {name for name, axes in arms.items() if selects(side, name, axes)}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _sides(arms: Arms) -> list[str]:
    """What a claim or --only may say: the arms' names, or where those are several terms, the single terms."""
    terms = ((name.split(), name) for name in arms)
    said = (words if all("=" in word for word in words) else [name] for words, name in terms)
    return list(dict.fromkeys(side for sides in said for side in sides))
