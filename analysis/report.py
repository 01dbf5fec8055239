"""Results to a table, figures, a notebook and its HTML: `python -m analysis.report NAME`.

Everything is rebuilt from MLflow, and only when something in MLflow or in this code changed.
"""

import hashlib
import html
import json
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from lmim.analysis import claims, publish, results, searches, table
from lmim.command import Parser, exit_code, out_folder
from lmim.errors import count, listed
from lmim.files import write_atomic
from lmim.tracking import default_uri
from lmim.trial.store import stored

HERE = Path(__file__).parent
FILES = (
    "table.csv",
    "table.md",
    "table.tex",
    "trials.csv",
    "verdicts.json",
    "comparison.png",
    "comparison.pdf",
    "training.png",
    "training.pdf",
    "report.json",
    "report.ipynb",
    "report.html",
)
SEARCH_FILES = ("search.csv", "search.png", "search.pdf")
"""Beside them, where arms were tuned."""
LABEL = 12
"""Characters before a line's text."""
COLOURS = {claims.SUPPORTED: "green", claims.CONTRADICTED: "red", claims.UNDECIDED: "yellow"}


@dataclass(frozen=True)
class Report:
    """What a build found, and where it lies."""

    path: Path
    """The folder of the outputs; report.html is the one to open."""
    found: results.Results
    rows: tuple[table.Row, ...]
    verdicts: tuple[claims.Verdict, ...]
    built: bool
    """False when all was up to date already."""


def build(name: str, scale: str | None, out: Path, uri: str | None = None) -> Report:
    """Bring a report up to date, by its scale: `demo`, `demo+optim.epochs=1`; None is what ran last.

    Writes `FILES`, and `SEARCH_FILES` where arms were tuned, into out/name/scale, each atomically. Raises
    UserError for what is not there.
    """
    uri = uri or default_uri(out)
    found = results.read(name, scale, uri)
    folder = out / found.name / found.place
    digest = hashlib.sha256(f"{found.digest} {_code_digest()}".encode()).hexdigest()
    stamp = folder / ".digest"
    fresh = stamp.is_file() and stamp.read_text(encoding="utf-8") == digest
    stale = not fresh or not all((folder / file).is_file() for file in _files(folder, found))
    report = Report(folder, found, table.rows(found), claims.judge(found), stale)
    if stale:
        folder.mkdir(parents=True, exist_ok=True)
        _write(report, uri)
        write_atomic(stamp, digest)
    files = _files(folder, found)
    publish.publish(uri, found, report.rows, report.verdicts, folder, files, digest)
    return report


def _files(folder: Path, found: results.Results) -> tuple[str, ...]:
    """What a report is made of; the figures of its sweep's own are named in report.json."""
    return FILES + SEARCH_FILES * bool(found.searches) + _drawn(folder)


def _drawn(folder: Path) -> tuple[str, ...]:
    """The files of the figures that the sweep asked for when the report in a folder was written."""
    file = folder / "report.json"
    figures = json.loads(file.read_text(encoding="utf-8")).get("figures", ()) if file.is_file() else ()
    return tuple(f"{page}.{kind}" for one in figures for page in one["pages"] for kind in ("png", "pdf"))


def _code_digest() -> str:
    """Of the sources here: a report is out of date when its code changed."""
    sources = sorted(HERE.glob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()


def _write(report: Report, uri: str) -> None:
    from lmim.analysis import figures  # Matplotlib and, below, Jupyter are slow to import: only for a build

    folder, found, rows = report.path, report.found, report.rows
    with _stages(5 + bool(found.figures)) as stage:
        stage("table")
        write_atomic(folder / "table.csv", table.to_csv(rows, report.verdicts))
        write_atomic(folder / "table.md", table.to_markdown(rows, found, report.verdicts))
        write_atomic(folder / "table.tex", table.to_latex(rows, found, report.verdicts))
        write_atomic(folder / "trials.csv", table.trials_csv(found))
        _json(folder / "verdicts.json", verdicts(report))
        stage("training curves")
        drawn_arms = {row.arm for row in figures.first(rows)[0]}
        trials = [trial for trial in found.trials if trial.arm in drawn_arms]
        curves = results.curves(uri, trials, figures.CURVES)
        stage("figures")
        figures.save(figures.comparison(found, rows), folder / "comparison")
        figures.save(figures.training(found, rows, curves), folder / "training")
        if found.searches:
            from lmim.analysis import search_figure

            write_atomic(folder / "search.csv", searches.to_csv(found))
            figures.save(search_figure.search(found, rows), folder / "search")
        drawn = _draw(report, uri, stage) if found.figures else []
        before = _drawn(folder)
        _json(folder / "report.json", shown(report) | ({"figures": drawn} if drawn else {}))
        for name in {*before} - {*_drawn(folder)}:  # of fewer pages, or of other figures
            (folder / name).unlink(missing_ok=True)
        stage("notebook")
        notebook = _execute(folder)
        stage("HTML")
        write_atomic(folder / "report.html", _page(notebook, found.question))


def _draw(report: Report, uri: str, stage: Callable[[str], None]) -> list[dict[str, Any]]:
    """Draw what the sweep's file asks for besides; what report.json says of each figure."""
    from lmim.analysis import album

    stage("further figures")
    said: list[dict[str, Any]] = []
    for one in album.albums(uri, report.found, report.rows):
        number = 1 + sum(other["name"] == one.name for other in said)
        pages = album.save(one, report.path, number)
        said.append({"name": one.name, "caption": one.caption, "pages": pages, "notes": one.notes})
    return said


def _json(file: Path, data: object) -> None:
    write_atomic(file, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def _stages(total: int) -> Iterator[Callable[[str], None]]:
    """A progress line on standard error that names the stage at work."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("report", total=total, completed=-1)

        def stage(name: str) -> None:
            progress.update(task, description=f"report: {name}", advance=1)

        yield stage


# The notebook


def _execute(folder: Path) -> Any:
    """Run the template in a kernel of its own in `folder`, whose files it shows; write report.ipynb."""
    import jupytext
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    dump: Any = nbformat.writes  # untyped

    source = (HERE / "report_template.py").read_text(encoding="utf-8")
    notebook: Any = jupytext.reads(source.partition("\n")[2], fmt="py:percent")  # the first line is mypy's
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    place = {"metadata": {"path": str(folder)}}
    with tempfile.TemporaryDirectory() as private:
        # sockets in a folder of the user's own instead of ports: no one else on the host reaches the kernel
        kernel = AsyncKernelManager(transport="ipc", ip=f"{private}/kernel", kernel_name="python3")
        client = NotebookClient(
            notebook, km=kernel, timeout=600, resources=place, shutdown_kernel="immediate"
        )
        client.execute(cleanup_kc=True)
    write_atomic(folder / "report.ipynb", str(dump(notebook)))
    return notebook


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


def shown(report: Report) -> dict[str, Any]:
    """What the notebook shows beside the table, the figures and trials.csv."""
    found = report.found
    baselines = {arm.name for arm in found.arms if arm.baseline}
    params = [trial.params for trial in found.trials if trial.arm not in baselines]
    keys = sorted({key for one in params for key in one} - {"seed"})
    values = {key: {one.get(key, "") for one in params} for key in keys}
    return {
        "question": found.question,
        "summary": summary(report),
        "verdicts": [
            one | {"verdict": v.words, "metric": found.label(v.metric), "difference": table.effect(v)}
            for one, v in zip(verdicts(report), report.verdicts, strict=True)
        ],
        "note": table.note(report.verdicts),
        "notes": found.notes,
        "searches": searches.lines(found) if found.searches else [],
        "searched": searches.note(found) if found.searches else "",
        "settings": [{"key": key, "value": min(own)} for key, own in values.items() if len(own) == 1],
        "excluded": [
            {"trial": trial.id, "arm": trial.arm, "seed": trial.seed, "reason": trial.reason}
            for trial in found.excluded
        ],
    }


def verdicts(report: Report) -> list[dict[str, Any]]:
    """What verdicts.json holds: each claim, what became of it, and the figures that say so."""
    return [
        {
            "claim": v.claim,
            "verdict": v.verdict,
            "post_hoc": v.late,
            "after_holm": v.corrected or None,
            "p_holm": v.holm,
            "metric": v.metric,
            **asdict(v.effect),
            "evidence": v.reason,
        }
        for v in report.verdicts
    ]


def summary(report: Report) -> str:
    """The first lines of a report: what was compared, on how much, at which cost."""
    found, rows = report.found, report.rows
    arms = sum(not row.baseline for row in rows)
    spent = [(sum(row.core_hours for row in rows), "core"), (sum(row.gpu_hours for row in rows), "GPU")]
    hours = ", ".join(f"{total:.2f} {unit}-hours" for total, unit in spent if total)
    replayed = [place for trial in found.trials if (place := found.replayed_on(trial))]
    of_them = f" ({len(replayed)} of other code, replayed on {replayed[0]})" if replayed else ""
    return (
        f"Sweep {found.name}, scale {found.setting}, design {found.design}: "
        f"{count(arms, 'arm')} and {count(len(rows) - arms, 'baseline')}; "
        f"{count(len(found.trials), 'trial')} in the figures{of_them}, {len(found.excluded)} not; "
        f"{hours}. The metric is {found.metric}.{table.chance(found)}"
    )


# The command


def show(report: Report, console: Console) -> None:
    """Print the table, the verdicts, what is excluded, and the path of the report."""
    found = report.found
    if report.rows:
        cells = table.cells(report.rows, found)
        head, *body = _fitting(cells, len(found.metrics), console.width)
        grid = Table(box=None, pad_edge=False, header_style="bold")
        for index, name in enumerate(head):
            grid.add_column(
                name, justify="left" if index == 0 or name == "outcome" else "right", no_wrap=True
            )
        for row, texts in zip(report.rows, body, strict=True):
            grid.add_row(*map(escape, texts), style="dim" if row.baseline else None)
        console.print(grid, crop=False, soft_wrap=True)
        if hidden := len(cells[0]) - len(head):
            _say(console, "", f"({count(hidden, 'more column')} in {report.path / 'table.md'})")
    for verdict in report.verdicts:
        fewer = f"; after Holm {verdict.corrected}" if verdict.corrected not in ("", verdict.verdict) else ""
        line = f"{verdict.claim}  {table.effect(verdict)}  ({verdict.reason}{fewer})"
        _say(console, verdict.words, line, f"bold {COLOURS[verdict.verdict]}")
    if report.verdicts:
        _say(console, "intervals", table.SEQUENCE if found.sequential else table.T_INTERVAL)
    for search in found.searches:
        _say(console, "search", str(search))
    for note in found.notes:
        label, _, text = note.partition(": ")
        _say(console, label, text)
    _show_excluded(report, console)
    state = "written" if report.built else "up to date"
    console.print(f"{report.path / 'report.html'} {state}", markup=False, highlight=False, soft_wrap=True)


def _show_excluded(report: Report, console: Console) -> None:
    missing = [trial for trial in report.found.excluded if trial.reason == results.NO_RUN]
    older = [trial for trial in report.found.excluded if trial.reason == results.OLD_PLAN]
    for trial in report.found.excluded:
        if trial.reason not in (results.NO_RUN, results.OLD_PLAN):
            _say(console, "excluded", f"{trial.id} {trial.arm} seed {trial.seed}: {trial.reason}")
    if any(trial.odd for trial in report.found.excluded):
        again = report.path.parent.parent / "trials" / "<trial>"
        _say(console, "", f"To train an excluded trial anew, delete {again} and run the sweep again.")
    if older:
        number = count(len(older), "trial")
        _say(console, "left out", f"{number} of other settings, not in the newest plan")
    if missing:
        _say(console, "not run", listed(missing))


def _say(console: Console, label: str, text: str, style: str = "") -> None:
    """A line behind its label; a terminal gets it broken between words, a file as it is."""
    if console.is_terminal:
        width = max(console.width - LABEL - 2, 20)
        over = " " * (len(label) - LABEL)  # a long label takes of the first line
        wrapper = textwrap.TextWrapper(
            width, initial_indent=over, break_long_words=False, break_on_hyphens=False
        )
        text = f"\n{' ' * (LABEL + 2)}".join(wrapper.wrap(text)).removeprefix(over)
    console.print(Text.assemble((label.rjust(LABEL), style), "  ", text), soft_wrap=True, highlight=False)


def _fitting(cells: list[list[str]], metrics: int, width: int) -> list[list[str]]:
    """The table without what a terminal has no room for; arm, n and the sweep's own metric stay.

    What goes first: the last of the other metrics, the cost, the outcome.
    """
    keep = list(range(len(cells[0])))
    after = 2 + metrics
    for drop in [*range(after - 1, 2, -1), *range(len(keep) - 1, after - 1, -1)]:
        if sum(max(len(line[i]) for line in cells) + 2 for i in keep) - 2 <= width:
            break
        keep.remove(drop)
    return [[line[i] for i in keep] for line in cells]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return exit_code(lambda: _command(arguments))


def _command(arguments: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m analysis.report", description="Rebuild a sweep's report from MLflow.")
    parser.add_argument("name", help="the sweep's name")
    parser.add_argument("--scale", help="demo, or with settings demo+optim.epochs=1 (default: what ran last)")
    parser.add_argument(
        "--out", type=out_folder, default=Path("results"), help="the results folder (default: results)"
    )
    parser.add_argument("--tracking-uri", help="MLflow's URI (default: sqlite, mlflow.db in --out)")
    given = parser.parse_args(arguments)
    with stored(given.out):
        show(build(given.name, given.scale, given.out, given.tracking_uri), Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
