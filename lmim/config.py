"""The typed config of one trial: one schema, validated once, printed back whole.

The schema is that of the trial's own variants: an objective names the sections that it reads, and a loss, a
target or a decoder the keys of its section (see `variants.py`). A key that nothing reads is an error.

Pure: imports neither torch nor Ray, so that a sweep is planned in a blink.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from lmim import variants
from lmim.variants import (
    BelowOne,
    Count,
    Finite,
    Fraction,
    NonNegative,
    Positive,
    PositiveInt,
)


class Section(BaseModel):
    """Strict, closed and immutable: an unknown key or a wrong type is an error, never a guess."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    def settings(self) -> dict[str, Any]:
        """The keys and their values, as a variant takes them."""
        return {name: getattr(self, name) for name in type(self).model_fields if name not in NAMED}


NAMED = ("kind", "name")
"""The keys by which a section names its variant."""


class Data(Section):
    name: str = "glyphs"
    """The dataset: a file of `data/`, or a function of your own."""
    version: str | None = None
    """What the data are, filled in when the sweep is planned: the same wherever they lie."""
    path: str | None = None
    """Root folder of a dataset that lies on disk; of imagefolder train/<class>/ and val/<class>/, or <class>/
    alone, of which a fifth is held out."""
    image_size: PositiveInt = 20
    """Side in pixels at evaluation; the training crop is the objective's."""
    train_images: PositiveInt | None = None
    """Use only so many training images, the same ones for every trial."""
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Smallest area of a random resized crop, as a part of the image."""
    flip: bool = False
    """Whether training views are mirrored at random, of data whose classes allow it."""


class Encoder(Section):
    patch_size: PositiveInt = 4
    """Side of a patch in pixels."""
    width: PositiveInt = 64
    """Channels of a token."""
    depth: PositiveInt = 4
    """Number of blocks."""
    heads: PositiveInt = 4
    """Heads of each block's attention."""
    mlp_ratio: Positive = 4.0
    """Width of a block's MLP over that of a token."""


class Projector(Section):
    depth: Count = 3
    """Number of linear layers; 0 is no projector."""
    width: PositiveInt = 4096
    """Channels of its hidden layers."""


class Collapse(Section):
    """The settings are those of the target; see `axes/collapse.py`."""

    kind: str = "ema"
    """Where the latents to be predicted come from, and so what keeps them from collapsing."""


TOKENS = ("kmeans", "fsq", "ids")
"""The targets that are a patch's code: ids, of which a decoder predicts the logits."""


def levels_of(text: str) -> tuple[int, ...]:
    """The levels of each part of a code of finite scalar quantisation; none where the text says none.

    >>> levels_of("8x6x5"), levels_of("8 x 1")
    ((8, 6, 5), ())
    """
    found = tuple(map(int, text.split("x"))) if re.fullmatch(r"\d{1,4}(x\d{1,4})*", text) else ()
    return found if all(level > 1 for level in found) else ()


class Loss(Section):
    """The settings are those of the loss; see `axes/loss.py`."""

    kind: str = "patch_discrimination"
    """What the predicted latents are compared with the target's by."""


class Mask(Section):
    """What every objective with a mask reads of the section; see `LatentMask` for the rest."""

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Part of the patches that the online encoder does not see."""
    gap: Count = 0
    """Pixels by which a cell exceeds its patch."""

    def visible(self, patches: int) -> int:
        """Patches that the online encoder sees: 20 of ImageNet's 196 at the published ratio of 0.9."""
        return round(patches * (1 - self.ratio))


class LatentMask(Mask):
    """With the similarity constraint, of objectives that predict latents."""

    similarity: NonNegative = 0.1
    """Coefficient of the similarity constraint; 0 is off."""
    similarity_start: Finite = 0.75
    """The similarity between latents of an image that the constraint aims at when training begins."""
    similarity_end: Finite = 0.25
    """The same when training ends; between them it follows a cosine."""


class Decoder(Section):
    """The settings are those of the decoder; see `axes/decoder.py`."""

    kind: str = "cross_attention"
    """How the masked latents are predicted."""


class Optim(Section):
    epochs: Count = 12
    """Passes over the training images; 0 evaluates the encoder as it was initialised."""
    batch_size: PositiveInt = 128
    """Images of a micro-batch: those that one loss is taken over."""
    accumulate: PositiveInt = 1
    """Micro-batches a step, shared by run.processes: the effective batch is batch_size x accumulate."""
    base_lr: Positive = 1.5e-4
    """lr = base_lr x effective batch / 256."""
    warmup_epochs: NonNegative = 0.6
    """Epochs in which the learning rate rises from its least to its peak."""
    min_lr_ratio: Fraction = 0.25
    """The least learning rate, at both ends of the schedule, over the peak."""
    weight_decay: NonNegative = 0.05
    """AdamW's; biases, norms and embeddings have none."""
    beta1: BelowOne = 0.9
    """AdamW's, of the gradient's mean."""
    beta2: BelowOne = 0.95
    """AdamW's, of the gradient's square."""
    layer_decay: Fraction = 1.0
    """A block's learning rate over that of the one after it (arXiv 2106.08254); 1 is one rate for all."""
    clip_grad: NonNegative = 0.0
    """Largest gradient norm; 0 is no clipping."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of a training step; bfloat16 by autocast, with weights and losses in float32."""


class Watch(Section):
    images: PositiveInt = 512
    """Images of the fixed batch on which collapse is watched."""
    every_epochs: PositiveInt = 1
    """Epochs between two looks at collapse."""


class Run(Section):
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where a trial runs; auto is a GPU where there is one."""
    threads: PositiveInt = 1
    """Threads that PyTorch computes with on the CPU."""
    compile: bool = False
    """Whether the step goes through torch.compile."""
    log_every: PositiveInt = 20
    """Steps between two rows of the journal."""
    checkpoint_seconds: NonNegative = 30.0
    """Seconds between two checkpoints at least."""
    processes: PositiveInt = 1
    """Processes that share the micro-batches of each step (data parallel)."""
    placement: Literal["machine", "cluster"] = "machine"
    """Where they run: all on one machine, or on as few of the cluster's as have room for them (--address)."""
    gpus: Positive | Literal["auto"] = 1.0
    """The part of a GPU that each process takes where there are any; all of it if there are several. auto: as
    many trials share one as its memory and their throughput are good for, which the sweep measures first."""
    cpus: PositiveInt = 1
    """Cores that each process takes."""
    stall_timeout: NonNegative = 0.0
    """Seconds without a row, a checkpoint, a result or output after which a trial's process is taken to hang
    and killed; the trial goes on from its checkpoint. 0 waits for ever. It has to be longer than `log_every`
    steps, a compilation and the slowest protocol take. A sweep with --serial watches nobody."""
    checkpointing: bool = False
    """Whether blocks are computed again in the backward pass and not kept: the same digits, less memory, a
    slower step. A trial that runs out of memory with a GPU to itself goes on like this without being told."""

    @property
    def gpu_share(self) -> float:
        """`gpus` as a number; auto is all of one where nobody has measured."""
        return 1.0 if self.gpus == "auto" else self.gpus


SECTIONS: dict[str, type[Section]] = {
    "data": Data,
    "encoder": Encoder,
    "projector": Projector,
    "collapse": Collapse,
    "loss": Loss,
    "mask": LatentMask,
    "decoder": Decoder,
    "optim": Optim,
    "watch": Watch,
    "run": Run,
}
ALWAYS = ("data", "optim", "watch", "run")
"""The sections of every trial; an objective adds those that it reads."""
KINDS = frozenset(name for name, kind in SECTIONS.items() if "kind" in kind.model_fields)
"""The sections that name a variant, which goes by the section's own name: `loss.kind` is `loss`."""


class Config(Section):
    """Everything a trial is. Made by `Config.read`; what its objective does not read is not there."""

    objective: str = "latent_mim"
    """What is trained."""
    seed: Count = 0
    """What every random draw of a trial comes from; a sweep names them in `seeds`."""
    data: Data = Data()
    optim: Optim = Optim()
    watch: Watch = Watch()

    # orchestration, should not affect results
    run: Run = Run()

    sources: dict[str, str] = {}
    """The user's own code that a variant comes from: file or module to its text."""
    imported: str = ""
    """What the weights are, of a trial whose weights were trained elsewhere; see `lmim/interop`."""

    @classmethod
    def read(cls, tree: Mapping[str, Any]) -> "Config":
        """The config that a nested mapping describes, by the schema of its own variants.

        Raises:
            ValidationError: a value that the schema refuses, or values that do not go together.
        """
        names = {section: _named(tree, section) for section in ("objective", *sorted(KINDS), "data")}
        sources = tree.get("sources", {})
        return _schema(tuple(names.items()), tuple(sources.items())).model_validate(tree)

    @classmethod
    def read_json(cls, text: str | bytes) -> "Config":
        """The config that `model_dump_json` printed."""
        tree = json.loads(text)
        if not isinstance(tree, dict):
            raise ValueError("expected a mapping")
        return cls.read(tree)

    def __reduce__(self) -> tuple[Any, ...]:
        """The class is made for the variants, so that another process makes it again."""
        return Config.read, (self.model_dump(),)

    def section(self, name: str) -> Any:
        """A section that the objective reads."""
        return getattr(self, name)

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        """Each rule names the keys it is about, so that the message can point at their lines."""
        for key, holds, message in _rules(self):
            if not holds:
                raise CombinationError(key, message)
        return self

    @property
    def grid(self) -> int:
        """Patches along one side."""
        side: int = self.data.image_size // self.section("encoder").patch_size
        return side

    @property
    def has_ids(self) -> bool:
        """Whether the target is of ids that were computed elsewhere."""
        return hasattr(self, "collapse") and self.section("collapse").kind == "ids"

    @property
    def step_images(self) -> int:
        """Images of an optimiser's step: the effective batch."""
        return self.optim.batch_size * self.optim.accumulate

    @property
    def frames(self) -> int:
        """Frames of a clip that a step sees: the objective's setting of that name; 0 where it has none."""
        own = getattr(self, self.objective.rpartition(":")[2], None)
        found: int = getattr(own, "frames", 0)
        return found

    def too_few_frames(self, there: int) -> str:
        """What is wrong with data of clips of so many frames, 1 being images; empty where nothing is."""
        if self.frames <= there or not self.frames:
            return ""
        own = self.objective.rpartition(":")[2]
        return (
            f"{self.data.name} is of {'images' if there == 1 else f'clips of {there} frames'}: objective "
            f"{self.objective} needs clips of {own}.frames {self.frames} or more"
        )

    @property
    def identity(self) -> str:
        """Twelve hex digits of the SHA-256 of what the training uses, the seed included.

        What it uses: the keys that its objective and variants read, except where they have their neutral
        value, what the data are, and the user's own code. Not where the data lie, nor how the trial runs.
        """
        canonical = json.dumps(self.used(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def arm(self) -> str:
        """The identity of the trial whatever its seed."""
        return self.model_copy(update={"seed": 0}).identity

    def used(self) -> dict[str, Any]:
        """The flat keys that the identity is made of."""
        found: dict[str, Any] = {}
        lies = {"data.path", *(["collapse.path"] if self.has_ids else [])}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name in ("run", "sources"):
                continue
            if not isinstance(value, Section):
                found |= {} if value == field.default else {name: value}
                continue
            for key, part in type(value).model_fields.items():
                if getattr(value, key) != part.default and f"{name}.{key}" not in lies:
                    found[name if key == "kind" else f"{name}.{key}"] = getattr(value, key)
        if not self.optim.epochs:  # what steps are made with counts where steps are made
            found = {key: value for key, value in found.items() if not key.startswith("optim.")}
            found["optim.epochs"] = 0
        return found | {f"source {file}": variants.digest(text) for file, text in self.sources.items()}

    def flat(self) -> dict[str, Any]:
        """Dotted keys to values; a section's `kind` goes by the section's own name."""
        return flatten(self.model_dump(exclude={"sources"}))


def fields(own: Mapping[str, Iterable[str]], sources: Mapping[str, str]) -> dict[str, tuple[Any, ...]]:
    """Every config key that some variant reads, flat, with the types that it may have.

    `own` names, for a section, the user's own variants; `sources` holds their text.

    >>> fields({}, {})["loss.tau"][0] is Positive
    True

    Raises:
        ValueError: one of the user's own cannot be called as a variant of its section.
    """
    found: dict[str, tuple[Any, ...]] = {"objective": (str,), "seed": (Count,)}
    for section, kind in SECTIONS.items():
        for key, field in kind.model_fields.items():
            name = section if key == "kind" else f"{section}.{key}"
            found[name] = (Annotated[field.annotation, field],)
    del found["data.version"]
    for section in ("objective", *sorted(KINDS), "data"):
        for ref in [*variants.choices(section), *own.get(section, ())]:
            prefix = ref.rpartition(":")[2] if section == "objective" else section
            for key, setting in variants.describe(section, ref, sources).settings.items():
                if (ref, key) == ("ids", "version"):  # filled in, as data.version is
                    continue
                name = f"{prefix}.{key}"
                found[name] = (*found.get(name, ()), setting.type)
    return found


def _named(tree: Mapping[str, Any], section: str) -> str:
    """The variant that a tree names for a section; the schema's default where it names none."""
    given = tree.get(section)
    if section == "objective":
        return given if isinstance(given, str) else Config.model_fields["objective"].default
    leaf = "name" if section == "data" else "kind"
    default: str = SECTIONS[section].model_fields[leaf].default
    found = given.get(leaf, default) if isinstance(given, Mapping) else default
    return found if isinstance(found, str) else default


@functools.cache
def _schema(names: tuple[tuple[str, str], ...], sources: tuple[tuple[str, str], ...]) -> type[Config]:
    """The class of the configs of these variants.

    An unknown variant gives a schema that refuses it by name, as it refuses any other wrong value.
    """
    chosen, texts = dict(names), dict(sources)
    fields: dict[str, Any] = {}
    own: dict[str, Any]
    described, wrong = _described("objective", chosen["objective"], texts)
    if described and (foreign := [name for name in described.reads if name not in SECTIONS]):
        described, wrong = (
            None,
            f"expected parameters named as sections, or with a default, found {foreign[0]}",
        )
    if wrong:
        fields["objective"] = (Annotated[str, _refuse(wrong)], chosen["objective"])
    if described and described.settings:
        own = {key: (one.type, one.neutral) for key, one in described.settings.items()}
        made = create_model(chosen["objective"], __base__=Section, **own)
        fields[chosen["objective"].rpartition(":")[2]] = (made, made())
    for section in dict.fromkeys([*(described.reads if described else KINDS), *ALWAYS]):
        kind = part_of(section, described)
        if section in KINDS or section == "data":
            leaf = "name" if section == "data" else "kind"
            found, wrong = _described(section, chosen[section], texts)
            default = kind.model_fields[leaf].default
            own = {leaf: (Annotated[str, _refuse(wrong)] if wrong else str, default)}
            own |= {key: (s.type, s.neutral) for key, s in (found.settings if found else {}).items()}
            kind = create_model(kind.__name__, __base__=kind, **own)
            # a default section is that of this variant: `loss.kind` is what the key names
            fields[section] = (kind, kind.model_construct(**{leaf: default}))
        elif section not in ALWAYS:
            fields[section] = (kind, kind())
    return create_model("Config", __base__=Config, **fields)


def part_of(section: str, objective: variants.Variant | None) -> type[Section]:
    """The keys of a section that an objective reads: those of the class by which it annotates the section."""
    whole = SECTIONS[section]
    named = objective.reads.get(section) if objective else None
    return next((kind for kind in whole.__mro__ if kind.__name__ == named), whole)


def _described(section: str, name: str, sources: Mapping[str, str]) -> tuple[variants.Variant | None, str]:
    try:
        return variants.describe(section, name, sources), ""
    except ValueError as error:
        return None, str(error)


def _refuse(message: str) -> AfterValidator:
    def check(value: str) -> str:
        raise ValueError(message)

    return AfterValidator(check)


RANDAUGMENT = re.compile(r"rand(-(m|n|mmax)\d+|-(p|mstd)\d+(\.\d+)?|-inc[01])*")
"""What timm reads: magnitude, layers, the largest magnitude; probability, deviation; harder ones."""

Rule = tuple[str, bool, str]
"""The key to blame, whether the rule holds, and what to say where it does not."""


def _rules(config: Config) -> Iterable[Rule]:
    run = config.run
    yield (
        "run.processes",
        config.optim.accumulate % run.processes == 0,
        f"{run.processes} does not divide optim.accumulate {config.optim.accumulate}, the step's "
        "micro-batches, which they share",
    )
    yield (
        "run.gpus",
        run.gpu_share <= 1,
        f"{run.gpu_share:g} is more than the one GPU that a process trains on: for more set run.processes",
    )
    yield (
        "run.gpus",
        run.gpu_share == 1 or run.processes == 1 or run.device == "cpu",
        f"{run.gpu_share:g} is less than the one GPU that each of several run.processes takes: set it to "
        "1, or run.device=cpu",
    )
    own = config.objective.rpartition(":")[2]
    described = getattr(getattr(config, own, None), "randaugment", "")
    yield (
        f"{own}.randaugment",
        not described or bool(RANDAUGMENT.fullmatch(described)),
        f"expected timm's words such as rand-m9-mstd0.5-inc1, found {described}",
    )
    if hasattr(config, "encoder"):
        yield from _patch_rules(config)
    if config.objective == "video_mim":
        yield from _tube_rules(config)
    if config.objective == "block_mim":
        depth, blocks = config.section("encoder").depth, config.section("block_mim").blocks
        yield (
            "block_mim.blocks",
            blocks <= depth,
            f"{blocks} is more than encoder.depth {depth}, the layers that the blocks share",
        )
    if hasattr(config, "loss"):
        yield from _token_rules(config)
    quantised = {"fsq": config.objective, "collapse": getattr(getattr(config, "collapse", None), "kind", "")}
    for name in (name for name, kind in quantised.items() if kind == "fsq"):
        levels = config.section(name).levels
        yield (
            f"{name}.levels",
            bool(levels_of(levels)),
            f"expected the levels of each part of a code, two or more each, such as 8x6x5, found {levels}",
        )
    for name in ("encoder", "decoder"):
        part = getattr(config, name, None)
        width, heads = getattr(part, "width", 0), getattr(part, "heads", 1)
        yield (
            f"{name}.width",
            width % heads == 0,
            f"{width} is not divisible by {name}.heads {heads}",
        )
        yield (
            f"{name}.width",
            width % 4 == 0,
            f"{width} is not divisible by 4, as the sin-cos position codes need",
        )


def _patch_rules(config: Config) -> Iterable[Rule]:
    side, patch = config.data.image_size, config.section("encoder").patch_size
    yield (
        "data.image_size",
        side % patch == 0,
        f"{side} is not divisible by encoder.patch_size {patch}: the training crop is "
        "(image_size / patch_size) x (patch_size + mask.gap) pixels",
    )
    if not hasattr(config, "mask"):
        return
    patches, ratio = config.grid**2, config.section("mask").ratio
    visible = config.section("mask").visible(patches)
    yield (
        "mask.ratio",
        0 < visible < patches,
        f"{ratio:g} of {patches} patches leaves {visible} visible: "
        "one or more must be visible and masked, of (data.image_size / encoder.patch_size) squared",
    )
    if config.objective == "contrastive_mim":
        yield from _contrast_rules(config)
    if hasattr(config, "collapse") and (kind := config.section("collapse").kind) in ("vicreg", "sigreg"):
        yield (
            "optim.batch_size",
            config.optim.batch_size > 1,
            f"1 image has no spread, which {kind} needs: two or more, as a loss is of one micro-batch",
        )
    if hasattr(config, "loss") and config.section("loss").kind == "patch_discrimination":
        yield (
            "mask.ratio",
            patches - visible > 1,
            f"{ratio:g} of {patches} patches masks one; patch_discrimination needs "
            "others to tell it from, of (data.image_size / encoder.patch_size) squared",
        )


def _tube_rules(config: Config) -> Iterable[Rule]:
    own, patches = config.section("video_mim"), config.grid**2
    one = {"video": [own.within_video], "image": [own.within_image]}
    both = [*one["video"], *one["image"], own.across_video, own.across_frame]
    yield (
        "optim.batch_size",
        not any(one.get(own.branches, both)) or config.optim.batch_size > 1,
        "1 clip has no other to be told from by video_mim's contrast: two or more, as a loss is of one "
        "micro-batch",
    )
    if own.branches == "image":
        return
    yield (
        "video_mim.frames",
        own.frames % own.tube == 0,
        f"{own.frames} is not divisible by video_mim.tube {own.tube}, the frames of a tube",
    )
    visible = round(patches * (1 - own.video_ratio))
    yield (
        "video_mim.video_ratio",
        0 < visible < patches,
        f"{own.video_ratio:g} of {patches} patches leaves {visible} visible: one or more must be visible and "
        "masked, of (data.image_size / encoder.patch_size) squared",
    )


def _contrast_rules(config: Config) -> Iterable[Rule]:
    own, mask, grid = config.section("contrastive_mim"), config.section("mask"), config.grid
    cells = (grid // own.cell) ** 2
    visible = mask.visible(cells)
    yield (
        "contrastive_mim.cell",
        grid % own.cell == 0,
        f"{own.cell} does not divide the {grid} patches of a side, data.image_size / encoder.patch_size",
    )
    yield (
        "mask.ratio",
        0 < visible < cells,
        f"{mask.ratio:g} of {cells} cells leaves {visible} visible: one or more must be visible and masked, "
        "of (data.image_size / encoder.patch_size / contrastive_mim.cell) squared",
    )
    patches = visible * own.cell**2
    yield (
        "contrastive_mim.withheld",
        not own.position or round(own.withheld * patches) > 0,
        f"{own.withheld:g} of {patches} visible patches is none, of which contrastive_mim.position could ask "
        "where it lies",
    )
    yield (
        "optim.batch_size",
        not own.contrast or config.optim.batch_size > 1,
        "1 image has no other to be told from by contrastive_mim.contrast: two or more, as a loss is of one "
        "micro-batch",
    )


def _token_rules(config: Config) -> Iterable[Rule]:
    loss = config.section("loss").kind
    target = config.section("collapse").kind if hasattr(config, "collapse") else "pixels"
    yield (
        "loss",
        loss != "cross_entropy" or target in TOKENS or variants.own(target),
        f"cross_entropy compares with ids, and the target is {target}: use a token target, "
        f"collapse: {' or '.join(TOKENS)}",
    )
    if target not in TOKENS:
        return
    if target == "ids":
        yield from _id_rules(config)
    yield (
        "loss",
        loss == "cross_entropy" or variants.own(loss),
        f"{loss} compares numbers, and collapse {target} gives ids: use loss: cross_entropy",
    )
    similarity = getattr(config.section("mask"), "similarity", 0) if hasattr(config, "mask") else 0
    yield (
        "mask.similarity",
        not similarity,
        f"{similarity:g} constrains the predicted latents, and with collapse {target} logits of codes are "
        "predicted: set it to 0",
    )


def _id_rules(config: Config) -> Iterable[Rule]:
    """Ids computed elsewhere are of whole images, patch by patch."""
    data, gap = config.data, config.section("mask").gap if hasattr(config, "mask") else 0
    said = "collapse ids is of whole images, patch by patch: set it to"
    yield "data.crop_scale", data.crop_scale == 1, f"{data.crop_scale:g} crops training views, and {said} 1"
    yield "data.flip", not data.flip, f"true mirrors training views, and {said} false"
    yield "mask.gap", not gap, f"{gap} shifts patches in their cells, and {said} 0"
    own = getattr(config, config.objective, None)
    for key, off in (("mixup", 0), ("cutmix", 0), ("randaugment", '""')):
        changes = getattr(own, key, None)
        yield f"{config.objective}.{key}", not changes, f"{changes} moves or mixes views, and {said} {off}"


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
