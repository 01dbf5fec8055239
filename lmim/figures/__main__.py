"""Draw figures of any trial: `python -m lmim.figures results/trials/<id> --figures segmentation,tsne`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lmim import variants
from lmim.analysis import album
from lmim.command import Parser, exit_code, out_folder
from lmim.errors import UserError, cause
from lmim.figures import Subject, draw
from lmim.plan.located_yaml import parse_yaml
from lmim.plan.sweep_file import figures_with_data
from lmim.trial.figure import Figure, named_figure, read_figures
from lmim.trial.folder import TrialFolder


def main(argv: Sequence[str] | None = None) -> int:
    """0: all is drawn that can be, 1: some failed, 2: wrong arguments."""
    return exit_code(lambda: _command(argv))


def _command(argv: Sequence[str] | None) -> int:
    every = variants.choices("figure")
    parser = Parser(prog="python -m lmim.figures", description="Draw the papers' figures of any trial.")
    several = "results/trials/<id>; of several the figures stand below each other"
    parser.add_argument("trials", metavar="TRIAL", nargs="+", type=Path, help=several)
    written = "as a sweep file has them: 'segmentation, {attention: {images: 4}}'"
    parser.add_argument("--figures", default=",".join(every), help=f"{written}; default: all")
    place = "where they are written, as PNG and PDF; default: figures"
    parser.add_argument("--out", type=out_folder, default=Path("figures"), help=place)
    options = parser.parse_args(argv)
    figures = _figures(options.figures)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with console.status("reading the trials ..."):
        folders = [TrialFolder(path.resolve().parent, path.resolve().name) for path in options.trials]
        subjects = [Subject.of(folder) for folder in folders]
    options.out.mkdir(parents=True, exist_ok=True)
    failed = False
    names = [one.name for one in figures]
    for earlier, one in enumerate(figures):
        shown = []
        for subject in subjects:
            try:
                with console.status(f"{one.name} of {subject.folder.id} ..."):
                    arrays = draw(subject.having(one.sources), one)
            except Exception as error:  # noqa: BLE001  the other figures are drawn
                failed = True
                console.print(f"error: {one.name} of {subject.folder.id}: {cause(error)}", markup=False)
                continue
            label = f"{subject.folder.id}, {subject.config.objective}"
            shown.append(album.Shown(label, f"seed {subject.config.seed}", arrays))
        found = album.album(one, shown)
        for note in found.notes:
            console.print(f"{one.name}: nothing of {note}", markup=False)
        for name in album.save(found, options.out, 1 + names[:earlier].count(one.name)):
            print(options.out / f"{name}.png")
    return int(failed)


def _figures(text: str) -> tuple[Figure, ...]:
    try:
        entries = parse_yaml(f"[{text}]", "--figures").plain()
        refs = [str(named_figure(entry)[1].get("data", "")) for entry in entries]
        sources = dict(variants.read_source(ref, Path()) for ref in refs if variants.own(ref))
        found = figures_with_data(read_figures(entries, sources))
    except ValueError as error:
        raise UserError(f"--figures: {error}") from None
    if of_sweep := [one.name for one in found if one.of_sweep]:
        raise UserError(f"--figures: {of_sweep[0]} is of a sweep's table: write it in the sweep's file")
    return found


if __name__ == "__main__":
    sys.exit(main())
