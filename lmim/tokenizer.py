"""Fit the tokenizers that trials with a token target need, each once, before any of them begins.

    python -m lmim.tokenizer ablations/target.yaml

The sweep command does so by itself. A tokenizer sees training images alone, whole and not augmented, and is
fitted on the host's cores in one thread, so that the same data and code give the same one. It is kept in the
cache (`$LMIM_CACHE/tokenizers/`) under what it was made from; the trials copy it into their checkpoints.
"""

import json
import math
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from lmim import objectives
from lmim.axes.collapse import Tokens
from lmim.axes.mask import patchify
from lmim.command import Parser, exit_code
from lmim.config import Config
from lmim.data import Dataset, Split, open_dataset
from lmim.data.augment import crop, normalise
from lmim.data.cache import cached, noted
from lmim.data.splits import Subset
from lmim.errors import UserError, count
from lmim.objectives import Setup
from lmim.plan import ablation, tokenizers
from lmim.train import checkpoint
from lmim.train.loop import train
from lmim.trial.folder import TrialFolder

IMAGES, PATCHES = 10_000, 100_000
"""What a tokenizer is fitted on, and judged on: at most so many images, and of them so many patches."""
BATCH = 256
STEPS = 1000
"""Of the training of a tokenizer that is trained, at least."""


def ensure(configs: Iterable[Config]) -> list[Path]:
    """Fit the tokenizers that these configs need and that are not in the cache; where all of them lie.

    Of processes that want one at once, one makes it and the others wait.

    Raises:
        UserError: the data set is not there, or has fewer patches than a tokenizer has codes.
    """
    return [_ensure(config) for config in tokenizers.needed(configs)]


def ensure_for(folder: TrialFolder, config: Config) -> None:
    """Fit the tokenizer that a trial begins with; one that goes on has its own in the checkpoint."""
    if not folder.checkpoint.exists():
        ensure([config])


def _ensure(config: Config) -> Path:
    where = tokenizers.folder(config, config.data.version)
    if config.data.version is not None and where.is_dir():
        return where
    dataset = open_dataset(config.data, config.sources)

    def make() -> dict[str, bytes]:
        target = target_of(config, dataset)
        state = FITS[config.section("collapse").kind](config, dataset)
        target.load_state_dict(state)
        about = tokenizers.made_from(config, dataset.version) | {"figures": figures(target, config, dataset)}
        weights: bytes = safetensors.torch.save(state)
        return {tokenizers.WEIGHTS: weights, tokenizers.ABOUT: json.dumps(about, indent=1).encode()}

    return cached(tokenizers.place(config, dataset.version), make, lambda file, content: file.write(content))


def target_of(config: Config, dataset: Dataset) -> Tokens:
    """The config's target, not fitted."""
    setup = Setup(config.data.image_size, dataset.channels, dataset.classes, sources=config.sources)
    parts = objectives.build(config, setup).modules()
    return next(part for part in parts if isinstance(part, Tokens))


def figures(target: Tokens, config: Config, dataset: Dataset) -> dict[str, float]:
    """How good a tokenizer is, on the patches of validation images.

    `used`: codes that occur. `perplexity`: of their frequencies. `error`: the mean squared error of the
    patches that the codes stand for, over the variance of the patches.
    """
    patches = _patches(dataset.val, config, dataset, "looking at validation patches")
    ids = torch.cat([target.ids(some) for some in torch.split(patches, BATCH)])
    shares = torch.bincount(ids, minlength=target.codes).double() / len(ids)
    decoded = torch.cat([target.decode(some) for some in torch.split(ids, BATCH)])
    return {
        "codes": target.codes,
        "used": int((shares > 0).sum()),
        "perplexity": math.exp(torch.special.entr(shares).sum().item()),
        "error": ((decoded - patches).square().mean() / patches.var(correction=0)).item(),
    }


def _patches(split: Split, config: Config, dataset: Dataset, what: str) -> Float[Tensor, "n p"]:
    """Normalised patches of whole images, drawn at random but always the same ones."""
    side, size = config.data.image_size, config.section("encoder").patch_size
    stream = torch.Generator().manual_seed(0)
    some = Subset(split, torch.randperm(len(split), generator=stream)[:IMAGES].sort().values)
    each = min(config.grid**2, math.ceil(PATCHES / len(some)))
    mean, std = torch.tensor(dataset.mean), torch.tensor(dataset.std)

    def read() -> Iterator[Float[Tensor, "n p"]]:
        batches = torch.split(torch.arange(len(some)), BATCH)
        for indices in noted(what, batches, len(batches)):
            images, boxes = some.read(indices, side)
            patches = patchify(normalise(crop(images, boxes, side), mean, std), size)
            kept = torch.rand(patches.shape[:2], generator=stream).argsort(dim=1)[:, :each]
            yield patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[2])).flatten(0, 1)

    return torch.cat([*read()])[:PATCHES]


# --------------------------------------------------------------------------------------------- fits


def _kmeans(config: Config, dataset: Dataset) -> dict[str, Tensor]:
    from sklearn.cluster import MiniBatchKMeans  # a second's import, which most trials can do without
    from threadpoolctl import threadpool_limits

    patches = _patches(dataset.train, config, dataset, "reading patches for k-means")
    codes = config.section("collapse").codes
    if codes > len(patches):
        raise UserError(
            f"collapse.codes: {codes} is more than the {len(patches):,} patches that k-means is fitted on: "
            "ask for fewer"
        )
    with threadpool_limits(1):
        found = MiniBatchKMeans(codes, batch_size=4096, n_init=3, random_state=0).fit(patches.numpy())
    return {"centroids": torch.from_numpy(found.cluster_centers_).float().contiguous()}


def _fsq(config: Config, dataset: Dataset) -> dict[str, Tensor]:
    """By the shared trainer, as a trial of the objective `fsq` that goes on where it was killed."""
    images = min(len(dataset.train), IMAGES)
    batch = min(128, images)
    epochs = math.ceil(STEPS / (images // batch))
    tree: dict[str, Any] = {
        "objective": "fsq",
        "fsq": {"levels": config.section("collapse").levels},
        "encoder": {"patch_size": config.section("encoder").patch_size},
        "data": config.data.model_dump() | {"train_images": images, "crop_scale": 1.0, "flip": False},
        "optim": {"epochs": epochs, "batch_size": batch, "base_lr": 0.512 / batch, "weight_decay": 0.0},
        "watch": {"images": 64, "every_epochs": epochs},
        "run": {"device": "cpu"},
        "sources": config.sources,
    }
    training = Config.read(tree | {"data": tree["data"] | {"version": dataset.version}})
    place = tokenizers.folder(config, dataset.version)
    folder = TrialFolder(place.with_name(f".{place.name}.training"), training.identity)
    total = epochs * (images // batch)
    lines, shown = noted("training the tokenizer fsq, step", range(total), total), 0

    def report(step: int, metrics: dict[str, float]) -> None:
        nonlocal shown
        for _ in range(shown, step):
            next(lines)
        shown = step

    state = train(training, folder, report=report)
    next(lines, None)
    if state.outcome == "diverged":
        raise UserError(f"{folder.path}: the training of the tokenizer diverged: use other collapse.levels")
    saved = checkpoint.load(folder.checkpoint)["objective"]
    shutil.rmtree(folder.root)
    return {key: tensor.contiguous() for key, tensor in saved.items()}


FITS = {"kmeans": _kmeans, "fsq": _fsq}


# ------------------------------------------------------------------------------------------ command


def main(argv: Sequence[str] | None = None) -> int:
    """0: every tokenizer of the file is there, 2: wrong file or arguments."""
    return exit_code(lambda: _command(argv))


def _command(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m lmim.tokenizer", description="Fit the tokenizers of a sweep's trials.")
    parser.add_argument("file", help="the sweep file, such as ablations/target.yaml")
    parser.add_argument("--scale", help="a file of scales/, such as demo or gpu")
    sets = "lay a config key over every arm, as the sweep is given it; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help=sets)
    options = parser.parse_args(argv)
    sweep = ablation.load(options.file, options.scale, options.sets)
    configs = tokenizers.needed(trial.config for trial in sweep.trials)
    if not configs:
        print(f"{sweep.path}: no trial has a target of tokens that must be fitted")
    sweep.check_data(sweep.trials)
    for config in configs:
        [where] = ensure([config])
        print(f"{tokenizers.tell(config)}: {told(where)}", flush=True)
    return 0


def told(where: Path) -> str:
    """The figures of a tokenizer in words, and where it lies."""
    found: dict[str, Any] = json.loads((where / tokenizers.ABOUT).read_text(encoding="utf-8"))["figures"]
    return (
        f"{found['used']} of {count(found['codes'], 'code')} used, perplexity {found['perplexity']:.1f}, "
        f"reconstruction error {100 * found['error']:.1f} % of the variance; in {where}"
    )


if __name__ == "__main__":
    sys.exit(main())
