"""Judge any encoder by any protocol: `python -m lmim.evaluate ENCODER --protocols knn,linear`.

With `--sweep NAME` it is judged as that sweep's trials are, and gets a row in its table.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lmim import config, variants
from lmim.command import Parser, exit_code, out_folder
from lmim.config import Config
from lmim.data import Dataset, open_dataset
from lmim.data.imagefolder import IMAGENET_MEAN, IMAGENET_STD
from lmim.errors import UserError, brief, cause, nearest, show
from lmim.evaluate import Trained, image_features, judge, patch_features
from lmim.loading import load_trial, trial_at
from lmim.plan.located_yaml import parse_yaml
from lmim.plan.record import Other, Record, kept
from lmim.plan.settings import expectation
from lmim.plan.sweep_file import with_data
from lmim.train.loop import choose_device, device_name
from lmim.trial.code import code_digest, code_version, libraries
from lmim.trial.evaluation import DEFAULT, Evaluation, protocol_of, read_evaluations
from lmim.trial.folder import TrialFolder
from lmim.trial.store import stored

ENCODER = (
    "what is judged: the folder of a trial (results/trials/<id>); a checkpoint of Latent MIM's or MAE's "
    "authors (.pth, .safetensors; with --model); or timm:<name>, with --weights or random"
)
IMAGENET: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class Judgeable:
    """An encoder, with the data that it has seen or is to be judged on."""

    encoder: nn.Module
    """With `features` and `patch_features` as an `Objective` has them."""
    data: config.Data
    sources: dict[str, str]
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and deviation that it expects pixels to be normalised by; None: those of the data.

    Of a trial on other data they are those of its own, of timm's models what timm knows, and of the authors'
    checkpoints ImageNet's, with which they trained; a model of other channels than three is seen as the data.
    """
    trained: Trained | None = None
    """The trial that it is, where it is judged on its own data."""
    depth: int | None = None
    """How many layers there are to look at; None where any is the same."""


def main(argv: Sequence[str] | None = None) -> int:
    """0: every protocol has figures, 1: some have none, 2: wrong arguments."""
    return exit_code(lambda: _command(argv))


def _command(argv: Sequence[str] | None) -> int:
    options = _parser().parse_args(argv)
    console = Console(stderr=True)
    record, beside = _sweep(options) if options.sweep else (None, None)
    evaluations = record.evaluations if record else _evaluations(options.protocols, options.split)
    begun = time.monotonic()
    with console.status("reading the encoder ..."):
        given = _open(options, beside)
        given.encoder.eval()
        dataset = _dataset(given)
    device = choose_device(Config.read({"run": {"device": options.device}}))
    encoder = given.encoder.to(device)
    side = given.data.image_size
    images = torch.zeros(1, dataset.channels, side, side, device=device)
    fitting, failed = [], []
    for one in evaluations:
        if lacking := _lacks(encoder, one):
            why = f"{options.encoder} has no {', '.join(lacking)}"
            if not record:
                raise UserError(f"{one.protocol}: {why}")
        else:
            why = _unfit(given, one, images)
        if not why:
            fitting.append(one)
        elif record:
            print(f"{one.protocol}: left out: {why}", file=sys.stderr)
        else:
            failed.append(f"{one.protocol}: {why}")
    views: list[Callable[..., Any]] = [partial(view, encoder) for view in (image_features, patch_features)]
    logits = getattr(encoder, "logits", None)
    metrics: dict[str, float] = {}
    table = Table("protocol", "metric", "value", "seconds", title=f"{options.encoder} on {given.data.name}")
    with console.status("judging ..."):
        judged = judge(
            views[0],
            dataset,
            side,
            fitting,
            device,
            logits,
            views[1],
            trained=given.trained,
        )
        for one, found in judged:
            names = {metric.name: metric for metric in one.metrics.values()}
            metrics |= found.metrics
            failed += [found.error] if found.error else []
            for name, value in found.metrics.items():
                unit = names[name].unit
                table.add_row(one.name, names[name].label, f"{value:.4g} {unit}", f"{found.seconds:.1f}")
    if options.json:
        about = {"encoder": options.encoder, "data": given.data.name, "version": dataset.version}
        print(json.dumps(about | {"metrics": metrics, "errors": failed}, indent=1))
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(table, markup=False)
    for error in failed:
        print(f"error: {error}", file=sys.stderr)
    if record and beside:
        with stored(options.out):
            seconds = time.monotonic() - begun
            _stand_beside(options, record, beside, given, dataset, metrics, seconds, device_name(device))
    return int(bool(failed))


def _lacks(encoder: nn.Module, evaluation: Evaluation) -> list[str]:
    """What a protocol needs of an encoder that it has not."""
    return [method for method in evaluation.methods if not hasattr(encoder, method)]


def _unfit(given: Judgeable, evaluation: Evaluation, images: Tensor) -> str:
    """Why a protocol cannot judge an encoder that has what it needs, if it cannot; `images` are any."""
    if "backbone" in evaluation.needs and given.trained is None:
        return "it goes on training a trial on its own data, which is not what is judged"
    if given.depth is not None and evaluation.layers > given.depth:
        layer = evaluation.settings["layer"]
        return f"layer: expected at most {given.depth}, the blocks of the encoder, found {layer}"
    try:
        with torch.no_grad():
            image_features(given.encoder, images, **evaluation.view)
    except Exception as error:  # noqa: BLE001  of another's model, which may raise anything
        return cause(error)
    return ""


# ------------------------------------------------------------------------------ a row of a sweep's table


def _sweep(options: argparse.Namespace) -> tuple[Record, Config]:
    """The plan of the sweep whose table gets a row, and a trial's config, with the data to be judged on."""
    name, _, place = options.sweep.partition("/")
    records = {record.place: record for record in kept(name, options.out)}
    if not records:
        raise UserError(f"--sweep {name}: no such sweep under {options.out}; run it first, or give --out")
    if not place and len(records) == 1:
        place = next(iter(records))
    if place not in records:
        known = ", ".join(f"{name}/{one}" for one in records)
        raise UserError(f"--sweep {options.sweep}: expected one of {known}")
    if options.data or options.data_path:
        raise UserError("--data: a row of a sweep's table is judged on the sweep's data; leave it out")
    record = records[place]
    folders = [TrialFolder(options.out / "trials", trial.id) for trial in record.trials]
    found = [folder.config() for folder in folders if (folder.path / "config.json").is_file()]
    if len({(one.data.version, _judged(one.data)) for one in found}) != 1:
        why = "its arms have several data" if found else "no trial of it is there yet"
        raise UserError(f"--sweep {options.sweep}: {why}, so that there is no one set to judge on")
    return record, found[0]


def _stand_beside(
    options: argparse.Namespace,
    record: Record,
    beside: Config,
    given: Judgeable,
    dataset: Dataset,
    metrics: dict[str, float],
    seconds: float,
    device: str,
) -> None:
    """Keep the figures as a row of the sweep's table, and tell MLflow."""
    from lmim.tracking import Tracker

    side = given.data.image_size
    size = "" if side == beside.data.image_size else f", {side} px"
    row = Other(
        name=f"{options.name or options.encoder} (not trained here{size})",
        encoder=options.encoder,
        metrics=metrics,
        image_size=side,
        data_version=dataset.version,
        beside=beside.data.version or "",
        seconds=seconds,
        code=code_digest(),
        commit=code_version(),
        **libraries(),
        device=device,
        judged=time.time(),
    )
    others = {one.name: one for one in (*record.others, row)}
    plan = record.model_copy(update={"others": tuple(others.values())})
    Tracker(options.tracking_uri, plan, options.out).close()
    where = f"python -m lmim.analysis.report {record.name} --scale {record.place}"
    print(f"Its row stands in: {where}", file=sys.stderr)  # what is asked for as JSON is JSON alone


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m lmim.evaluate", description="Judge any frozen encoder by any protocol.")
    parser.add_argument("encoder", metavar="ENCODER", help=ENCODER)
    written = "as a sweep file's `evaluate` has them: 'nn, {knn: {k: 5}}'"
    parser.add_argument("--protocols", default=",".join(DEFAULT), help=f"{written}; default: nn,knn,linear")
    parser.add_argument("--split", choices=["test", "val"], default="test", help="default: test")
    parser.add_argument(
        "--data", metavar="NAME", help="a dataset, as data.name; default: the trial's, or glyphs"
    )
    parser.add_argument("--data-path", metavar="DIR", help="where it lies, as data.path")
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="side in pixels; default: the encoder's own"
    )
    parser.add_argument(
        "--layout",
        choices=["latent_mim", "mae"],
        help="whose checkpoint a file is; default: as its names tell",
    )
    parser.add_argument(
        "--model", default="{}", help="the authors' arguments of its model: '{embed_dim: 768, depth: 12}'"
    )
    parser.add_argument("--weights", metavar="FILE", help="of a timm model; nothing is downloaded")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument(
        "--sweep", metavar="NAME[/PLACE]", help="judge as that sweep does, and give its table a row of it"
    )
    parser.add_argument("--name", help="what the row is called; default: ENCODER")
    parser.add_argument(
        "--out", type=out_folder, default=Path("results"), help="the sweeps'; default: results"
    )
    parser.add_argument("--tracking-uri", help="MLflow's URI; default: the database under --out")
    return parser


def _evaluations(text: str, split: Literal["test", "val"]) -> tuple[Evaluation, ...]:
    try:
        entries = parse_yaml(f"[{text}]", "--protocols").plain()
        named = [protocol_of(entry) for entry in entries]
        refs = [name for name, _ in named] + [str(settings.get("data", "")) for _, settings in named]
        sources = dict(variants.read_source(ref, Path()) for ref in refs if variants.own(ref))
        found = with_data(read_evaluations(entries, sources))
    except ValueError as error:
        raise UserError(f"--protocols: {error}") from None
    return tuple(replace(one, split=split) for one in found)


def _open(options: argparse.Namespace, beside: Config | None) -> Judgeable:
    if options.encoder.startswith("timm:"):
        from lmim.interop import TimmEncoder

        given, sources = _asked(options, beside)
        name = options.encoder.removeprefix("timm:")
        side = TimmEncoder.side(name) if options.image_size is None else options.image_size
        data = _data(given | {"image_size": side}, sources)
        dataset = open_dataset(data, sources)
        encoder = TimmEncoder.create(name, data.image_size, dataset.channels, options.weights)
        statistics = encoder.statistics(dataset.channels)
        return Judgeable(encoder, data, sources, statistics, depth=max(1, encoder.blocks))
    if options.layout or Path(options.encoder).is_file():
        from lmim.interop.official import LAYOUTS, layout_of, read_arguments, read_weights

        given, sources = _asked(options, beside)
        arguments, weights = read_arguments(options.model), read_weights(options.encoder)
        layout = options.layout or layout_of(weights, options.encoder)
        found, settings = LAYOUTS[layout](weights, arguments)
        data = _data(given | {"image_size": settings.data.image_size}, sources)
        statistics = IMAGENET if found.setup.channels == 3 else None
        return Judgeable(found, data, sources, statistics, depth=_depth(settings))
    if "://" not in options.encoder and not Path(options.encoder).is_dir():
        wanted = (
            "expected the folder of a trial, timm:<name>, or a checkpoint of Latent MIM's or MAE's authors"
        )
        raise UserError(f"{options.encoder}: {wanted}")
    trial = load_trial(options.encoder)
    seen = trial.config.data
    if options.image_size not in (None, seen.image_size):
        raise UserError(
            f"--image-size: expected {seen.image_size}, as the trial has seen, found {options.image_size}"
        )
    own = trial.config if options.data in (None, seen.name) else None
    given, sources = _asked(options, beside or own)
    data = _data(given | {"image_size": seen.image_size}, sources)
    if _same(data, beside.data.version if beside else None, seen):
        itself = Trained(trial.encoder, trial.config, trial_at(options.encoder).path, lambda: False)
        depth = _depth(trial.config)
        return Judgeable(trial.encoder, seen, trial.config.sources, trained=itself, depth=depth)
    return Judgeable(trial.encoder, data, sources, trial.statistics(), depth=_depth(trial.config))


def _depth(config: Config) -> int | None:
    """Of the encoder, where the objective has one."""
    return config.section("encoder").depth if hasattr(config, "encoder") else None


def _asked(options: argparse.Namespace, like: Config | None) -> tuple[dict[str, Any], dict[str, str]]:
    """The data section to be judged on, but for the side, and the user's own code of it.

    It is that of a config, where there is one: its dataset, with so many training images as it has.
    """
    path = {"path": options.data_path} if options.data_path is not None else {}
    if like is None:
        name = {"name": options.data} if options.data is not None else {}
        own = variants.own(options.data or "")
        return name | path, dict([variants.read_source(options.data, Path())] if own else [])
    section = like.data.model_dump(exclude={"version", "image_size"})
    return section | path, like.sources


def _judged(data: config.Data) -> str:
    """What of a data section judging sees, besides the version, where they lie, and how large they are."""
    return data.model_dump_json(exclude={"version", "path", "image_size", "crop_scale", "flip"})


def _same(data: config.Data, version: str | None, seen: config.Data) -> bool:
    """Whether data, of a version where it is known, are those that a trial has seen."""
    there = version == seen.version if version else data.path == seen.path
    return there and _judged(data) == _judged(seen)


def _data(given: dict[str, Any], sources: dict[str, str]) -> config.Data:
    tree = {"objective": "raw_pixels", "data": given, "sources": sources}
    try:
        return Config.read(tree).data
    except ValidationError as error:
        first = error.errors()[0]
        option = {"image_size": "--image-size", "path": "--data-path"}.get(str(first["loc"][-1]), "--data")
        expected, names = expectation(first)
        near = nearest(first["input"], names or variants.choices("data"))
        raise UserError(f"{option}: expected {expected}, found {show(first['input'])}{near}") from None


def _dataset(given: Judgeable) -> Dataset:
    """The data, normalised as the encoder expects it."""
    dataset = open_dataset(given.data, given.sources)
    if given.statistics is not None:
        dataset = replace(dataset, mean=given.statistics[0], std=given.statistics[1])
    if dataset.channels != len(dataset.mean):
        wanted = f"expected data of {len(dataset.mean)} channels, as the encoder has seen"
        raise UserError(f"--data: {wanted}, found {given.data.name} of {dataset.channels}")
    side = given.data.image_size
    try:
        with torch.no_grad():
            given.encoder.features(torch.zeros(1, dataset.channels, side, side))  # type: ignore[operator]
    except (AssertionError, RuntimeError, ValueError) as error:
        where = f"{given.data.name} of {dataset.channels} channels at {side} px"
        raise UserError(f"--data: {where} does not fit the encoder ({brief(error)})") from None
    return dataset


if __name__ == "__main__":
    sys.exit(main())
