"""Weights in and out: `python -m lmim.interop import|export`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lmim.command import Parser, exit_code, out_folder
from lmim.interop.official import LAYOUTS, read_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """0: done, 2: wrong arguments or files."""
    return exit_code(lambda: _command(argv))


def _command(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m lmim.interop", description="Take weights in, or give them out.")
    commands = parser.add_subparsers(dest="command", required=True)
    _import_options(commands.add_parser("import", help="make a trial of a checkpoint of the authors'"))
    _export_options(commands.add_parser("export", help="make a folder that timm reads of a trial"))
    options = parser.parse_args(argv)
    console = Console(stderr=True)
    if options.command == "export":
        from lmim.interop.export import export

        with console.status("writing the model ..."):
            export(options.trial, options.out, options.to == "hf", options.tracking_uri)
        print(f'timm.create_model("local-dir:{options.out}", pretrained=True)')
        return 0
    from lmim.interop.importing import import_weights

    given = read_arguments(options.model)
    with console.status("reading the weights ..."):
        folder = import_weights(
            options.file, options.layout, given, options.out, options.scale, options.data_path
        )
    print(folder.path)
    return 0


def _import_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a .pth or .safetensors of the authors'")
    parser.add_argument("--layout", choices=[*LAYOUTS], help="whose it is; default: as its names tell")
    parser.add_argument(
        "--model", default="{}", help="the authors' arguments of its model: '{embed_dim: 768, depth: 12}'"
    )
    parser.add_argument("--scale", default="paper", help="whose data it has seen; default: paper")
    parser.add_argument("--data-path", metavar="DIR", help="where they lie, as data.path")
    parser.add_argument("--out", type=out_folder, default=Path("results"), help="default: results")


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trial", type=Path, metavar="TRIAL", help="its folder, results/trials/<id>")
    parser.add_argument(
        "--to",
        choices=["timm", "hf"],
        required=True,
        help="hf: with a model card, for a repository of the hub",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a folder that is not there yet"
    )
    parser.add_argument("--tracking-uri", help="MLflow's, for the card; default: the database under results")


if __name__ == "__main__":
    sys.exit(main())
