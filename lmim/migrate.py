"""Trials of an older layout, read into today's: `python -m lmim.migrate [--out results]`.

Before identities stood still, a trial's was the hash of its whole config; evaluations were the journal's last
row. Each such folder is copied to its new identity, its results divided into training and evaluations, and
kept aside in `trials-old/`. Nothing is trained or judged again; what the code of today makes of them, a
replay tells.
"""

import json
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from lmim import variants
from lmim.command import Parser, exit_code, out_folder
from lmim.config import ALWAYS, KINDS, SECTIONS, Config
from lmim.errors import UserError, cause
from lmim.files import write_atomic
from lmim.train import checkpoint
from lmim.train.loop import device_name
from lmim.trial.evaluation import Result, read_evaluations, write_result
from lmim.trial.folder import State, TrialFolder

Json = dict[str, Any]
PROTOCOLS = {"eval/nn_top1": "nn", "eval/knn_top1": "knn", "eval/linear_top1": "linear"}
"""The metrics that stood in the journal, and the protocols that give them now."""


def config_of(old: Mapping[str, Any], version: str | None) -> Config:
    """Today's config of one of the older layout, without what its objective and variants do not read."""
    judged = old["evaluate"]
    reads = variants.describe("objective", old["objective"], {}).reads
    tree: Json = {key: old[key] for key in ("objective", "seed")}
    tree["watch"] = {"images": judged["probe_images"], "every_epochs": judged["every_epochs"]}
    for section in (name for name in SECTIONS if name in old and name in (*reads, *ALWAYS)):
        tree[section] = dict(old[section])
        if section in KINDS:
            settings = variants.describe(section, old[section]["kind"], {}).settings
            tree[section] = {k: v for k, v in old[section].items() if k == "kind" or k in settings}
    tree["data"]["version"] = version
    return Config.read(tree)


def migrate(old: Path, root: Path) -> TrialFolder:
    """Copy one folder of the older layout to where today's layout has it.

    Raises:
        UserError: it is damaged, or its data changed on the way.
    """
    try:
        before = json.loads((old / "config.json").read_text(encoding="utf-8"))
        state = json.loads((old / "state.json").read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in _lines(old / "journal.jsonl")]
        version = state.pop("dataset_version")
        config = config_of(before, version)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{old}: cannot be read ({cause(error)})") from None
    if version and "then" in version:
        raise UserError(f"{old}: its data changed while it trained ({version})")
    folder = TrialFolder(root, config.identity)
    if folder.path.exists():
        raise UserError(f"{old}: {folder.path} is there already")
    draft = root / f".{config.identity}.partial"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    write_atomic(draft / "config.json", config.model_dump_json(indent=2) + "\n")
    judged = _divide(rows)
    write_atomic(draft / "journal.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    _checkpoint(old / "checkpoint.pt", draft / "checkpoint.pt", config)
    state["metrics"] = {k: v for k, v in state["metrics"].items() if k not in PROTOCOLS}
    state["code"] = f"commit {state['commit']}" if state["commit"] else None
    if state["host"] == platform.node() and state["device"] == platform.machine():
        state["device"] = device_name(torch.device("cpu"))
    TrialFolder(root, draft.name).write(State.model_validate(state))
    draft.rename(folder.path)
    for name, value in judged.items():
        settings = {"k": before["evaluate"]["neighbours"]} if name == "eval/knn_top1" else {}
        (evaluation,) = read_evaluations([{PROTOCOLS[name]: settings}])
        (metric,) = evaluation.metrics.values()
        result = Result(
            **vars(evaluation),
            data_version=version or "",
            metrics={metric.name: value},
            sample={},
            seconds=0.0,
            **{key: str(state[key] or "") for key in ("code", "commit", "device")},
            torch="",
            timm="",
            date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(state["finished"])),
        )
        write_result(evaluation.file(folder.path, version or ""), result)
    return folder


def _lines(journal: Path) -> list[str]:
    return [line for line in journal.read_text(encoding="utf-8").splitlines() if line.strip()]


def _divide(rows: list[Json]) -> dict[str, float]:
    """Take what protocols found out of the last row; the measures of training stay."""
    found: dict[str, float] = {}
    for row in rows:
        for name in [name for name in row["metrics"] if name in PROTOCOLS]:
            found[name] = float(row["metrics"].pop(name))
    return found


def _checkpoint(old: Path, new: Path, config: Config) -> None:
    """The same weights under the new identity."""
    if not old.is_file():
        return
    saved = checkpoint.load(old)
    checkpoint.save(new, saved | {"identity": config.identity, "names": ["loss", "term", "grad_norm"]})


def main(argv: Sequence[str] | None = None) -> int:
    """0: all that is there is of today's layout now, 1: some could not be read, 2: wrong arguments."""
    return exit_code(lambda: _command(argv))


def _command(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m lmim.migrate", description="Read trials of an older layout into today's.")
    parser.add_argument("--out", type=out_folder, default=Path("results"), help="default: results")
    options = parser.parse_args(argv)
    root, aside = options.out / "trials", options.out / "trials-old"
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
    folders = [path for path in sorted(root.glob("*")) if _is_old(path)]
    failed = 0
    for path in track(folders, "migrating", console=console, transient=True):
        try:
            folder = migrate(path, root)
        except UserError as error:
            failed += 1
            console.print(f"left as it is: {error}", markup=False, highlight=False, soft_wrap=True)
            continue
        aside.mkdir(exist_ok=True)
        path.rename(aside / path.name)
        print(f"{path.name} is {folder.id} now")
    print(f"{len(folders) - failed} of {len(folders)} older trials migrated; the originals are in {aside}")
    return 1 if failed else 0


def _is_old(path: Path) -> bool:
    """Whether a trial's config is of the older layout, which had a section `evaluate`."""
    try:
        return "evaluate" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    sys.exit(main())
