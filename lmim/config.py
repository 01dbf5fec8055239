"""The typed config of one trial: one schema, validated once, printed back whole.

Pure: imports neither torch nor Ray, so that a sweep is planned in a blink.
"""

import ast
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


@functools.cache
def choices(module: str, table: str) -> tuple[str, ...]:
    """The names in the dict at the foot of an axis' file, read from its source.

    Reading instead of importing keeps planning free of torch, and the dict stays the only list.

    >>> "patch_discrimination" in choices("axes/loss", "LOSSES")
    True
    """
    path = Path(__file__).parent / f"{module}.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        target = node.target if isinstance(node, ast.AnnAssign) else target
        if not isinstance(target, ast.Name) or target.id != table:
            continue
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Dict):
            return tuple(str(ast.literal_eval(key)) for key in value.keys if key is not None)
    raise LookupError(f"{path} has no dict named {table}")


def one_of(module: str, table: str) -> AfterValidator:
    """A validator that accepts the names of one axis' dict."""

    def check(value: str) -> str:
        names = choices(module, table)
        if value not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return value

    return AfterValidator(check)


PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Section(BaseModel):
    """Strict, closed and immutable: an unknown key or a wrong type is an error, never a guess."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Data(Section):
    name: Annotated[str, one_of("data/datasets", "DATASETS")] = "glyphs"
    path: str | None = None
    """Root folder of a dataset that lies on disk."""
    image_size: PositiveInt = 20
    """Side in pixels at evaluation; the training crop is grid x (patch_size + gap)."""
    train_images: PositiveInt | None = None
    """Use only so many training images, the same ones for every trial."""
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Smallest area of a random resized crop, as a part of the image."""
    flip: bool = False


class Encoder(Section):
    patch_size: PositiveInt = 4
    width: PositiveInt = 64
    depth: PositiveInt = 4
    heads: PositiveInt = 4
    mlp_ratio: Positive = 4.0


class Projector(Section):
    depth: Count = 3
    """Number of linear layers; 0 is no projector."""
    width: PositiveInt = 4096


class Collapse(Section):
    kind: Annotated[str, one_of("axes/collapse", "TARGETS")] = "ema"
    momentum: Fraction = 0.99
    momentum_end: Fraction = 1.0
    target_sees: Literal["masked", "all"] = "masked"
    """The patches that the target encoder is shown ([A]: mask_target)."""


class Loss(Section):
    kind: Annotated[str, one_of("axes/loss", "LOSSES")] = "patch_discrimination"
    tau: Positive = 0.2


class Mask(Section):
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Part of the patches that the online encoder does not see."""
    gap: Count = 0
    """Pixels by which a cell exceeds its patch."""
    similarity: NonNegative = 0.1
    """Coefficient of the similarity constraint; 0 is off."""
    similarity_start: Finite = 0.75
    similarity_end: Finite = 0.25


class Decoder(Section):
    kind: Annotated[str, one_of("axes/decoder", "DECODERS")] = "cross_attention"
    cues: bool = True
    """Add the visual cues to the queries."""
    width: PositiveInt = 64
    depth: PositiveInt = 2
    heads: PositiveInt = 4
    mlp_ratio: Positive = 4.0


class Optim(Section):
    epochs: Count = 12
    """0 evaluates the encoder as it was initialised."""
    batch_size: PositiveInt = 128
    """Images of a micro-batch: those that one loss is taken over."""
    accumulate: PositiveInt = 1
    """Micro-batches a step, shared by run.processes: the effective batch is batch_size x accumulate."""
    base_lr: Positive = 1.5e-4
    """lr = base_lr x effective batch / 256."""
    warmup_epochs: NonNegative = 0.6
    min_lr_ratio: Fraction = 0.25
    weight_decay: NonNegative = 0.05
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.95
    clip_grad: NonNegative = 0.0
    """Largest gradient norm; 0 is no clipping."""
    precision: Literal["float32", "bfloat16"] = "float32"


class Evaluate(Section):
    neighbours: PositiveInt = 20
    probe_images: PositiveInt = 512
    """Images of the fixed batch on which collapse is watched."""
    every_epochs: PositiveInt = 1
    """How often collapse is measured."""


class Run(Section):
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: PositiveInt = 1
    compile: bool = False
    log_every: PositiveInt = 20
    """Steps between two rows of the journal."""
    checkpoint_seconds: NonNegative = 30.0
    processes: PositiveInt = 1
    """Processes that share the micro-batches of each step (data parallel), on one machine."""
    gpus: Positive = 1.0
    """The part of a GPU that each process takes where there are any; all of it if there are several."""
    cpus: PositiveInt = 1
    """Cores that each process takes."""


class Config(Section):
    """Everything a trial is. All but `run` makes its identity."""

    objective: Annotated[str, one_of("objectives/__init__", "OBJECTIVES")] = "latent_mim"
    seed: Count = 0
    data: Data = Data()
    encoder: Encoder = Encoder()
    projector: Projector = Projector()
    collapse: Collapse = Collapse()
    loss: Loss = Loss()
    mask: Mask = Mask()
    decoder: Decoder = Decoder()
    optim: Optim = Optim()
    evaluate: Evaluate = Evaluate()

    # orchestration, should not affect results
    run: Run = Run()

    @model_validator(mode="after")
    def _combinations(self) -> "Config":
        """Each rule names the keys it is about, so that the message can point at their lines."""
        side, patch = self.data.image_size, self.encoder.patch_size
        rules: list[tuple[str, bool, str]] = [
            (
                "data.image_size",
                side % patch == 0,
                f"{side} is not divisible by encoder.patch_size {patch}: the training crop is "
                "(image_size / patch_size) x (patch_size + mask.gap) pixels",
            ),
            (
                "mask.ratio",
                0 < self.num_visible < self.grid**2,
                f"{self.mask.ratio:g} of {self.grid**2} patches leaves {self.num_visible} visible: "
                "one or more must be visible and masked, of (data.image_size / encoder.patch_size) squared",
            ),
        ]
        run = self.run
        rules += [
            (
                "run.processes",
                self.optim.accumulate % run.processes == 0,
                f"{run.processes} does not divide optim.accumulate {self.optim.accumulate}, the step's "
                "micro-batches, which they share",
            ),
            (
                "run.gpus",
                run.gpus <= 1,
                f"{run.gpus:g} is more than the one GPU that a process trains on: for more set run.processes",
            ),
            (
                "run.gpus",
                run.gpus == 1 or run.processes == 1 or run.device == "cpu",
                f"{run.gpus:g} is less than the one GPU that each of several run.processes takes: set it to "
                "1, or run.device=cpu",
            ),
        ]
        if self.loss.kind == "patch_discrimination":
            rules.append(
                (
                    "mask.ratio",
                    self.grid**2 - self.num_visible > 1,
                    f"{self.mask.ratio:g} of {self.grid**2} patches masks one; patch_discrimination needs "
                    "others to tell it from, of (data.image_size / encoder.patch_size) squared",
                )
            )
        for name, part in (("encoder", self.encoder), ("decoder", self.decoder)):
            rules.append(
                (
                    f"{name}.width",
                    part.width % part.heads == 0,
                    f"{part.width} is not divisible by {name}.heads {part.heads}",
                )
            )
            rules.append(
                (
                    f"{name}.width",
                    part.width % 4 == 0,
                    f"{part.width} is not divisible by 4, as the sin-cos position codes need",
                )
            )
        for key, holds, message in rules:
            if not holds:
                raise CombinationError(key, message)
        return self

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.data.image_size // self.encoder.patch_size

    @property
    def num_visible(self) -> int:
        """Patches that the online encoder sees: 20 of ImageNet's 196 at the published ratio of 0.9."""
        return round(self.grid**2 * (1 - self.mask.ratio))

    @property
    def step_images(self) -> int:
        """Images of an optimiser's step: the effective batch."""
        return self.optim.batch_size * self.optim.accumulate

    @property
    def identity(self) -> str:
        """Twelve hex digits of the SHA-256 of all that affects results, the seed included."""
        kept = self.model_dump(exclude={"run"})
        canonical = json.dumps(kept, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def flat(self) -> dict[str, Any]:
        """Dotted keys to values; a section's `kind` goes by the section's own name."""
        return flatten(self.model_dump())


class CombinationError(ValueError):
    """Values that do not go together; `key` is the dotted key to blame."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key
        self.message = message


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping to dotted keys, `loss.kind` written `loss`.

    >>> flatten({"seed": 1, "loss": {"kind": "mse", "tau": 0.2}})
    {'seed': 1, 'loss': 'mse', 'loss.tau': 0.2}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping):
            flat |= flatten(value, name)
        else:
            flat[prefix if key == "kind" and prefix else name] = value
    return flat


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`change` laid over `base`, section by section; keys may be nested or dotted.

    A word for a section that has a `kind` sets that kind and leaves the rest.

    >>> merge({"loss": {"kind": "mse", "tau": 0.2}}, {"loss": "cosine", "optim.epochs": 3})
    {'loss': {'kind': 'cosine', 'tau': 0.2}, 'optim': {'epochs': 3}}
    """
    merged = dict(base)
    for dotted, value in change.items():
        key, _, rest = str(dotted).partition(".")
        if rest:
            value = {rest: value}
        if key in KINDS and isinstance(value, str):
            value = {"kind": value}
        if isinstance(value, Mapping):
            under = merged.get(key)
            if key in KINDS and isinstance(under, str):
                under = {"kind": under}
            merged[key] = merge(under if isinstance(under, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def _sections() -> list[tuple[str, type[Section]]]:
    found = []
    for name, field in Config.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found.append((name, kind))
    return found


KINDS = frozenset(name for name, kind in _sections() if "kind" in kind.model_fields)
