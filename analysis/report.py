"""Results to a table, figures, a notebook and its HTML: `python -m analysis.report NAME`.

Everything is rebuilt from MLflow, and only when something in MLflow or in this code changed.
"""

import hashlib
import html
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from analysis import claims, results, table
from lmim.command import Parser, exit_code, out_folder
from lmim.errors import redacted

if TYPE_CHECKING:
    import pandas as pd

HERE = Path(__file__).parent
FILES = (
    "table.csv",
    "table.md",
    "table.tex",
    "trials.csv",
    "comparison.png",
    "comparison.pdf",
    "training.png",
    "training.pdf",
    "report.ipynb",
    "report.html",
)
COLOURS = {claims.SUPPORTED: "green", claims.CONTRADICTED: "red", claims.UNDECIDED: "yellow"}


@dataclass(frozen=True)
class Report:
    """What a build found, and where it lies."""

    path: Path
    """The folder of the outputs; report.html is the one to open."""
    rows: tuple[table.Row, ...]
    verdicts: tuple[claims.Verdict, ...]
    excluded: tuple[results.Excluded, ...]
    built: bool
    """False when all was up to date already."""


def build(name: str, scale: str | None, out: Path, uri: str | None = None) -> Report:
    """Bring the report of a sweep at a scale up to date (without a scale: the one that ran last).

    Writes `FILES` into out/name/scale, each atomically. Raises UserError for what is not there.
    """
    uri = uri or f"sqlite:///{(out / 'mlflow.db').resolve()}"
    found = results.read(name, scale, uri)
    rows = table.rows(found)
    folder = out / found.name / found.scale
    digest = hashlib.sha256(f"{found.digest} {_code_digest()}".encode()).hexdigest()
    stamp = folder / ".digest"
    fresh = stamp.is_file() and stamp.read_text(encoding="utf-8") == digest
    stale = not fresh or not all((folder / file).is_file() for file in FILES)
    if stale:
        folder.mkdir(parents=True, exist_ok=True)
        _write(found, rows, folder, uri)
        write(stamp, digest.encode())
    return Report(folder, rows, claims.judge(found), found.excluded, stale)


def _code_digest() -> str:
    """Of the sources here: a report is out of date when its code changed."""
    sources = sorted(HERE.glob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()


def _write(found: results.Results, rows: Sequence[table.Row], folder: Path, uri: str) -> None:
    from analysis import figures  # Matplotlib and, below, Jupyter are slow to import: only for a build

    with _stages(5) as stage:
        stage("table")
        write(folder / "table.csv", table.to_csv(rows).encode())
        write(folder / "table.md", table.to_markdown(rows, found).encode())
        write(folder / "table.tex", table.to_latex(rows, found).encode())
        write(folder / "trials.csv", table.trials_csv(found).encode())
        stage("training curves")
        client = results.connect(uri)
        curves = {
            key: {trial.run_id: results.curve(client, trial.run_id, key) for trial in found.trials}
            for key in figures.CURVES
        }
        stage("figures")
        for name, figure in (
            ("comparison", figures.comparison(found, rows)),
            ("training", figures.training(found, rows, curves)),
        ):
            for kind in ("png", "pdf"):
                write(folder / f"{name}.{kind}", figures.encoded(figure, kind))
        stage("notebook")
        notebook = _execute(found, folder, uri)
        stage("HTML")
        write(folder / "report.html", _page(notebook, found.question).encode())


@contextmanager
def _stages(total: int) -> Iterator[Callable[[str], None]]:
    """A progress line on standard error that names the stage at work."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("report", total=total, completed=-1)

        def stage(name: str) -> None:
            progress.update(task, description=f"report: {name}", advance=1)

        yield stage


def write(path: Path, content: bytes) -> None:
    """Replace a file as a whole: a reader sees the old or the new one, never a part."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


# The notebook


def _execute(found: results.Results, folder: Path, uri: str) -> Any:
    """Fill in the template, run it in a kernel of its own in `folder`, and write report.ipynb."""
    import jupytext
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    dump: Any = nbformat.writes  # untyped

    notebook: Any = jupytext.reads(
        (HERE / "report_template.py").read_text(encoding="utf-8"), fmt="py:percent"
    )
    notebook.cells = [cell for cell in notebook.cells if "ruff: noqa" not in cell.source]
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            values = (found.name, found.scale, _portable(uri, folder))
            cell.source = f"NAME, SCALE, URI = {', '.join(map(repr, values))}"
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": uri,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's, on being imported in a notebook
    }
    place = {"metadata": {"path": str(folder)}}
    with tempfile.TemporaryDirectory() as private:
        # sockets in a folder of the user's own instead of ports: no one else on the host reaches the kernel
        kernel = AsyncKernelManager(transport="ipc", ip=f"{private}/kernel", kernel_name="python3")
        client = NotebookClient(
            notebook, km=kernel, timeout=600, resources=place, shutdown_kernel="immediate"
        )
        client.execute(env=environment, cleanup_kc=True)
    write(folder / "report.ipynb", str(dump(notebook)).encode())
    return notebook


def _portable(uri: str, folder: Path) -> str:
    """The URI as the notebook holds it: without a password, and a database relative to its folder."""
    scheme, slashes, path = uri.partition("sqlite:///")
    if scheme or not slashes:
        return redacted(uri)
    return f"{slashes}{os.path.relpath(path, folder)}"


def _page(notebook: Any, title: str) -> str:
    """The executed notebook as one HTML file that needs nothing else, without its code."""
    import nbconvert

    Exporter: Any = nbconvert.HTMLExporter  # untyped

    body, _ = Exporter(template_name="basic", exclude_input=True).from_notebook_node(notebook)
    style = (HERE / "report.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{style}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def summary(found: results.Results, frame: "pd.DataFrame") -> str:
    """The first lines of a report: what was compared, on how much, at which cost."""
    arms = int((~frame["baseline"]).sum())
    spent = [(frame["core_hours"].sum(), "core"), (frame["gpu_hours"].sum(), "GPU")]
    hours = ", ".join(f"{total:.2f} {unit}-hours" for total, unit in spent if total)
    return (
        f"Sweep **{found.name}**, scale **{found.setting}**, design {found.design}: {arms} arms and "
        f"{len(frame) - arms} baselines; {len(found.trials)} trials count, {len(found.excluded)} do not; "
        f"{hours}. The metric is `{found.metric}`."
    )


def verdict_html(verdicts: Sequence[claims.Verdict]) -> str:
    """The claims with their evidence as an HTML table."""
    lines = [
        [
            v.claim,
            v.verdict,
            table.label(v.metric),
            _effect(v),
            "" if v.effect.p is None else f"{v.effect.p:.2g}",
            v.reason,
        ]
        for v in verdicts
    ]
    note = (
        "<p class=note>Difference: in the claim's direction, mean [95 % t-interval]; for collapse, the "
        "distance of the rank ratio from 0.5. Intervals are not corrected for the number of claims.</p>"
    )
    head = ["claim", "verdict", "metric", "difference", "p", "evidence"]
    return html_table(head, lines) + note if lines else "<p>The sweep makes no claim.</p>"


def _effect(verdict: claims.Verdict) -> str:
    effect = verdict.effect
    if effect.mean is None:
        return "-"
    digits = table.decimals([effect.mean])
    if effect.low is None or effect.high is None:
        return f"{effect.mean:+.{digits}f}"
    return f"{effect.mean:+.{digits}f} [{effect.low:+.{digits}f}, {effect.high:+.{digits}f}]"


def excluded_html(excluded: Sequence[results.Excluded]) -> str:
    """The trials that are in no mean, each with its reason, as an HTML table."""
    if not excluded:
        return "<p>None: every planned trial counts.</p>"
    lines = [[trial.id, trial.arm, str(trial.seed), trial.reason] for trial in excluded]
    return html_table(["trial", "arm", "seed", "reason"], lines)


def settings_html(found: results.Results) -> str:
    """The config keys that have one value in all trained trials that count, as an HTML table."""
    baselines = {arm.name for arm in found.arms if arm.baseline}
    params = [trial.params for trial in found.trials if trial.arm not in baselines]
    keys = sorted({key for one in params for key in one} - {"seed"})
    values = {key: {one.get(key, "") for one in params} for key in keys}
    lines = [[key, *found] for key, found in values.items() if len(found) == 1]
    return f"<details><summary>{len(lines)} keys</summary>{html_table(['key', 'value'], lines)}</details>"


def provenance_html(found: results.Results) -> str:
    """Each trial that counts: identity, arm, seed, outcome, commit and dataset version, as an HTML table."""
    lines = [
        [t.id, t.arm, str(t.seed), t.outcome, t.commit, t.dataset_version, t.run_id] for t in found.trials
    ]
    return html_table(["trial", "arm", "seed", "outcome", "commit", "dataset version", "MLflow run"], lines)


def html_table(head: Iterable[str], lines: Iterable[Sequence[str]]) -> str:
    """Text as an HTML table; a verdict's cell gets the class of its colour."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td class={cell}>{cell}</td>" if cell in COLOURS else f"<td>{html.escape(cell)}</td>"
            for cell in line
        )
        + "</tr>"
        for line in lines
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


# The command


def show(report: Report, console: Console) -> None:
    """Print the table, the verdicts, what is excluded, and the path of the report."""
    if report.rows:
        head, *body = _fitting(table.cells(report.rows), console.width)
        grid = Table(box=None, pad_edge=False, header_style="bold")
        for index, name in enumerate(head):
            grid.add_column(
                name, justify="left" if index == 0 or name == "outcome" else "right", no_wrap=True
            )
        for row, cells in zip(report.rows, body, strict=True):
            grid.add_row(*map(escape, cells), style="dim" if row.baseline else None)
        console.print(grid, crop=False, soft_wrap=True)
        if hidden := len(table.cells(report.rows)[0]) - len(head):
            line = f"({results.count(hidden, 'more column')} in {report.path / 'table.md'})"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for verdict in report.verdicts:
        colour = COLOURS[verdict.verdict]
        console.print(f"[bold {colour}]{verdict.verdict:>12}[/]  ", end="")
        line = f"{verdict.claim}  {_effect(verdict)}  ({verdict.reason})"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    missing: dict[str, list[str]] = {}
    older = [trial for trial in report.excluded if trial.reason == results.OLD_PLAN]
    for trial in report.excluded:
        if trial.reason == results.NO_RUN:
            missing.setdefault(trial.arm, []).append(str(trial.seed))
            continue
        if trial in older:
            continue
        line = f"    excluded  {trial.id} {trial.arm} seed {trial.seed}: {trial.reason}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if any(trial.odd for trial in report.excluded):
        again = report.path.parent.parent / "trials" / "<trial>"
        line = f"To train an excluded trial anew, delete {again} and run the sweep again."
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if older:
        line = f"    left out  {results.count(len(older), 'trial')} of other settings, not in the newest plan"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if missing:
        number = results.count(sum(map(len, missing.values())), "trial")
        arms = [f"{arm} (seed {', '.join(seeds)})" for arm, seeds in missing.items()]
        line = f"     not run  {number}: {', '.join(arms[:10])}{', ...' if arms[10:] else ''}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    state = "written" if report.built else "up to date"
    console.print(f"{report.path / 'report.html'} {state}", markup=False, highlight=False, soft_wrap=True)


def _fitting(cells: list[list[str]], width: int) -> list[list[str]]:
    """The table without the last of its metrics, as many as a terminal has no room for."""
    keep = list(range(len(cells[0])))
    while len(keep) > 5 and sum(max(len(line[i]) for line in cells) + 2 for i in keep) > width:
        del keep[-3]  # outcome and cost stay, and the sweep's own metric
    return [[line[i] for i in keep] for line in cells]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return exit_code(lambda: _command(arguments))


def _command(arguments: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m analysis.report", description="Rebuild a sweep's report from MLflow.")
    parser.add_argument("name", help="the sweep's name")
    parser.add_argument("--scale", help="the scale (default: the one that ran last)")
    parser.add_argument(
        "--out", type=out_folder, default=Path("results"), help="the results folder (default: results)"
    )
    parser.add_argument("--tracking-uri", help="MLflow's URI (default: sqlite, mlflow.db in --out)")
    given = parser.parse_args(arguments)
    show(build(given.name, given.scale, given.out, given.tracking_uri), Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
