"""The result table: one row an arm, as data and as CSV, Markdown and LaTeX."""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lmim.analysis import searches
from lmim.analysis.claims import Verdict
from lmim.analysis.intervals import Interval, interval
from lmim.analysis.results import MACHINE, Arm, Results
from lmim.errors import count, word
from lmim.metrics import COLLAPSED, SAVED

NONE = "-"


@dataclass(frozen=True)
class Row:
    """An arm over its seeds."""

    arm: str
    axes: Mapping[str, object]
    baseline: bool
    n: int
    metrics: Mapping[str, Interval]
    """In the order of the columns."""
    outcomes: Mapping[str, int]
    core_hours: float
    gpu_hours: float
    flops: float = 0.0
    """Of one training; 0 where nothing is trained, or it was not counted."""
    early: Mapping[str, int] = field(default_factory=dict)
    """Of the outcomes, how many by ending early."""


def rows(results: Results) -> tuple[Row, ...]:
    """A row for each planned arm, in the file's order, the baselines last."""
    return tuple(_row(arm, results) for arm in results.arms)


def _row(arm: Arm, results: Results) -> Row:
    trials = results.of(arm.name)
    return Row(
        arm.name,
        arm.axes,
        arm.baseline,
        len(trials),
        {key: interval(t.metrics[key] for t in trials if key in t.metrics) for key in results.metrics},
        dict(sorted(Counter(t.outcome for t in trials if t.outcome).items())),
        math.fsum(trial.core_seconds for trial in trials) / 3600,
        math.fsum(trial.metrics.get("system/gpu_seconds", 0.0) for trial in trials) / 3600,
        arm.flops,
        Counter(t.outcome for t in trials if t.early),
    )


def decimals(values: Iterable[float]) -> int:
    """Enough to tell arms apart, for a whole column.

    >>> decimals([14.2, 6.5]), decimals([0.2, 0.9]), decimals([1234.0])
    (2, 3, 1)
    """
    largest = max((abs(value) for value in values), default=0.0)
    return 3 if largest < 2 else 2 if largest < 100.005 else 1


def cells(table: Sequence[Row], results: Results, none: str = NONE) -> list[list[str]]:
    """Head and rows as text: mean ± half of the 95 % interval; `(n=…)` where fewer seeds have the metric.

    Equal values have no interval: raw pixels depend on no seed.
    """
    metrics = list(table[0].metrics) if table else []
    digits = {
        key: decimals(mean for row in table if (mean := row.metrics[key].mean) is not None) for key in metrics
    }

    def number(row: Row, key: str) -> str:
        found = row.metrics[key]
        if found.mean is None:
            return none
        half = "" if not found.half else f" ± {found.half:.{digits[key]}f}"
        fewer = "" if found.n == row.n else f" (n={found.n})"
        return f"{found.mean:.{digits[key]}f}{half}{fewer}"

    on_gpus = any(row.gpu_hours for row in table)
    counted = any(row.flops for row in table)
    head = ["arm", "n", *map(results.label, metrics), "outcome", *["TFLOPs"] * counted]
    head += ["core-hours", *["GPU-hours"] * on_gpus]
    return [head] + [
        [
            row.arm,
            str(row.n),
            *(number(row, key) for key in metrics),
            _outcomes(row) or none,
            *[f"{row.flops / 1e12:.4g}" if row.flops else none] * counted,
            f"{row.core_hours:.3f}",
            *[f"{row.gpu_hours:.3f}"] * on_gpus,
        ]
        for row in table
    ]


def _outcomes(row: Row) -> str:
    early = {outcome: f" ({number} ended early)" for outcome, number in row.early.items()}
    return ", ".join(f"{number} {name}{early.get(name, '')}" for name, number in row.outcomes.items())


def caption(results: Results) -> str:
    """What the figures in a table are."""
    flops = "TFLOPs are of one training, counted; " if any(arm.flops for arm in results.arms) else ""
    once = " (of one look; verdicts stand on a confidence sequence)" if results.sequential else ""
    return (
        f"Mean ± half-width of the {T_INTERVAL} over n seeds{once}; scale {results.setting}; {flops}"
        f"hours are the sum over the row's trials.{saved(results)}{chance(results)}"
    )


def saved(results: Results) -> str:
    """A sentence on what was saved by ending trials early, where some were."""
    ended = [trial for trial in results.trials if trial.early]
    if not ended:
        return ""
    hours = [math.fsum(t.metrics.get(name, 0.0) for t in ended) / 3600 for name in SAVED.values()]
    told = [f"{found:.3f} {unit}-hours" for found, unit in zip(hours, ("core", "GPU"), strict=True) if found]
    return (
        f" {count(len(ended), 'trial')} ended early, by their journals' look of collapse, which saved about "
        f"{' and '.join(told)}; their figures are of where they ended."
    )


def chance(results: Results) -> str:
    """A sentence on what guessing gives, where that is known.

    >>> from types import SimpleNamespace
    >>> chance(SimpleNamespace(metrics=["a"], chance=lambda metric: 25.0, classes=4))
    ' Chance is 25.0 % top-1, with 4 classes.'
    """
    found = next((chance for key in results.metrics if (chance := results.chance(key)) is not None), None)
    return "" if found is None else f" Chance is {found:.1f} % top-1, with {results.classes} classes."


def effect(verdict: Verdict) -> str:
    """A verdict's difference with its interval."""
    found = verdict.effect
    if found.mean is None:
        return NONE
    digits = decimals([found.mean])
    if found.low is None or found.high is None:
        return f"{found.mean:+.{digits}f}"
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


T_INTERVAL = "95 % t-interval"
SEQUENCE = "95 % confidence sequence, valid however often one looks"
NOTE = (
    "Difference: in the claim's direction, mean [{}]; for collapse, how far the largest "
    f"of rank ratio, spread ratio and gain in 1-NN accuracy is from {COLLAPSED}. "
    "Intervals are not corrected for the number of claims{}."
)
HOLM = "; after Holm: at most 5 % that any verdict is false"
POST_HOC = " Post hoc: stated after the first results of its arms were in."


def note(verdicts: Iterable[Verdict]) -> str:
    """What the columns of verdicts are."""
    verdicts = list(verdicts)
    shown = SEQUENCE if any(verdict.effect.sequential for verdict in verdicts) else T_INTERVAL
    text = NOTE.format(shown, HOLM * any(verdict.corrected for verdict in verdicts))
    return text + POST_HOC * any(verdict.late for verdict in verdicts)


AFTER_HOLM = "after Holm"


def verdict_lines(verdicts: Iterable[Verdict]) -> list[list[str]]:
    """Head and rows of the verdicts, as text; with several, also the one after Holm's correction."""
    verdicts = list(verdicts)
    several = any(v.corrected for v in verdicts)
    head = ["claim", "verdict", *[AFTER_HOLM] * several, "difference [95 % interval]", "evidence"]
    rows = [[v.claim, v.words, *[v.corrected or NONE] * several, effect(v), v.reason] for v in verdicts]
    return [head, *rows]


def to_csv(table: Sequence[Row], verdicts: Sequence[Verdict] = ()) -> str:
    """Every figure in full: per metric its n, mean and interval; a column for each axis and each outcome.

    The last columns hold the verdicts on the claims about the arm, as such and after Holm's correction.
    """
    axes = list(dict.fromkeys(key for row in table for key in row.axes))
    outcomes = sorted({outcome for row in table for outcome in row.outcomes})
    metrics = list(table[0].metrics) if table else []
    parts = ["", " n", " low", " high"]
    last = {"verdicts": [(v, v.words) for v in verdicts]}
    last["verdicts_after_holm"] = [(v, v.corrected) for v in verdicts if v.corrected]
    last = {name: said for name, said in last.items() if said}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "arm",
            "baseline",
            *axes,
            "n",
            *(key + part for key in metrics for part in parts),
            *outcomes,
            "flops",
            "core_hours",
            "gpu_hours",
            *last,
        ]
    )
    for row in table:
        found = [row.metrics[key] for key in metrics]
        writer.writerow(
            [
                row.arm,
                word(row.baseline),
                *(word(row.axes[key]) if key in row.axes else "" for key in axes),
                row.n,
                *(value for i in found for value in (i.mean, i.n, i.low, i.high)),
                *(row.outcomes.get(outcome, 0) for outcome in outcomes),
                row.flops or "",
                row.core_hours,
                row.gpu_hours,
                *(
                    "; ".join(f"{v.claim}: {w}" for v, w in said if row.arm in v.arms)
                    for said in last.values()
                ),
            ]
        )
    return text.getvalue()


def to_markdown(table: Sequence[Row], results: Results, verdicts: Sequence[Verdict] = ()) -> str:
    """A pipe table under the sweep's question, the baselines in italics below the arms; then the verdicts."""
    head, *body = [list(map(escaped, line)) for line in cells(table, results)]
    for row, line in zip(table, body, strict=True):
        line[0] = f"*{line[0]}*" if row.baseline else line[0]
    lines = [head, ["---" if name in ("arm", "outcome") else "---:" for name in head], *body]
    italics = " Baselines in italics." if any(row.baseline for row in table) else ""
    parts = [f"**{escaped(results.question)}**", _pipes(lines), escaped(caption(results)) + italics]
    if verdicts:
        first, *rest = verdict_lines(verdicts)
        rest = [[escaped(claim), *found, escaped(why)] for claim, *found, why in rest]
        parts += [_pipes([first, ["---"] * len(first), *rest]), note(verdicts)]
    if results.searches:
        first, *rest = searches.lines(results)
        rest = [list(map(escaped, line)) for line in rest]
        parts += [_pipes([list(map(escaped, first)), ["---", *["---:"] * (len(first) - 1)], *rest])]
        parts += [escaped(searches.note(results))]
    parts += ["\n".join(f"- {escaped(note)}" for note in results.notes)] * bool(results.notes)
    return "\n\n".join(parts) + "\n"


def _pipes(lines: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escaped(text: str) -> str:
    """Text in which Markdown finds no mark-up and no HTML.

    >>> print(escaped("patch_discrimination <b> *x* _y_"))
    patch_discrimination \\<b\\> \\*x\\* \\_y\\_
    """
    return re.sub(r"[\\`*\[\]<>|$&~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def to_latex(table: Sequence[Row], results: Results, verdicts: Sequence[Verdict] = ()) -> str:
    """A booktabs tabular, the baselines under a rule of their own; then one of the verdicts."""
    head, *body = cells(table, results, none="--")
    columns = "".join("l" if name in ("arm", "outcome") else "r" for name in head)
    lines = [_latex_line(head), r"\midrule"]
    for row, line, above in zip(table, body, [None, *table], strict=False):
        if row.baseline and above is not None and not above.baseline:
            lines.append(r"\midrule")
        lines.append(_latex_line(line))
    text = f"% {results.question}\n% {caption(results)}\n% Needs \\usepackage{{booktabs}}.\n"
    text += _tabular(columns, lines)
    if verdicts:
        top, *below = [_latex_line(line[:-1]) for line in verdict_lines(verdicts)]  # evidence is too wide
        columns = "l" * top.count("&") + "r"
        text += f"\n% {note(verdicts)}\n" + _tabular(columns, [top, r"\midrule", *below])
    return text


def _tabular(columns: str, lines: Sequence[str]) -> str:
    inside = "\n".join([r"\toprule", *lines, r"\bottomrule"])
    return f"\\begin{{tabular}}{{{columns}}}\n{inside}\n\\end{{tabular}}\n"


def _latex_line(line: Sequence[str]) -> str:
    return " & ".join(re.sub(r"(-?[\d.]+ \\pm [\d.]+)", r"$\1$", _escape(cell)) for cell in line) + r" \\"


def _escape(text: str) -> str:
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"\pm",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
    return "".join(special.get(c, c) for c in text)


def trials_csv(results: Results) -> str:
    """Every trial that counts: a line with its axes, provenance and metrics."""
    axes = {arm.name: arm.axes for arm in results.arms}
    keys = list(dict.fromkeys(key for arm in results.arms for key in arm.axes))
    metrics = sorted({key for trial in results.trials for key in trial.metrics})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    provenance = ["commit", "replayed_on", "dataset_version", *MACHINE, "run"]
    writer.writerow(["trial", "arm", *keys, "seed", "outcome", *provenance, *metrics])
    for t in results.trials:
        own = [word(axes[t.arm][key]) if key in axes[t.arm] else "" for key in keys]
        values = [t.metrics.get(key, "") for key in metrics]
        machine = [getattr(t, name) for name in MACHINE]
        where = [t.commit, results.replayed_on(t), t.dataset_version, *machine, t.run_id]
        writer.writerow([t.id, t.arm, *own, t.seed, t.outcome, *where, *values])
    return text.getvalue()
