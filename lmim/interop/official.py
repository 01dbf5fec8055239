"""The checkpoints of Latent MIM's and of MAE's authors.

Their layouts are those of github.com/yibingwei-1/LatentMIM and github.com/facebookresearch/mae.
"""

import argparse
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from lmim.config import CombinationError, Config, merge
from lmim.errors import UserError, show
from lmim.objectives import Objective, Setup, build
from lmim.objectives.latent_mim import LatentMIM
from lmim.objectives.pixel_mim import PixelMIM
from lmim.plan.located_yaml import parse_yaml
from lmim.plan.settings import expectation

# The authors' key -> ours.
KEYS = {
    "patch_size": "encoder.patch_size",
    "embed_dim": "encoder.width",
    "depth": "encoder.depth",
    "num_heads": "encoder.heads",
    "mlp_ratio": "encoder.mlp_ratio",
    "proj_depth": "projector.depth",
    "proj_dim": "projector.width",
    "decoder_embed_dim": "decoder.width",
    "decoder_depth": "decoder.depth",
    "decoder_num_heads": "decoder.heads",
    "avg_vis_mask_token": "decoder.cues",
    "patch_gap": "mask.gap",
    "avg_sim_coeff": "mask.similarity",
    "tau": "loss.tau",
}
DEFAULTS = {
    **{"patch_size": 16, "embed_dim": 1024, "depth": 24, "mlp_ratio": 4.0, "avg_sim_coeff": 0.0},
    **{"decoder_embed_dim": 512, "decoder_depth": 3, "decoder_num_heads": 16, "avg_vis_mask_token": True},
    **{"patch_gap": 0, "tau": 0.2, "proj_depth": 3, "proj_dim": 4096},
}
"""Of their LMIM, and the projector's of their configs/lmim.yaml."""
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
"""Of the models of both by their width, as no shape of a weight tells them."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Of a terminal, which PyTorch puts into messages."""
SHOWN = 3
"""Of each kind of difference, in a message."""
LOSSES = {"infonce_patches": "patch_discrimination", "norm_l2": "norm_mse"}
RENAMED = {"embed.proj.": "embed.", "head.": "projector.", "pos_embed.pos_embeds": "positions"}

MAE_KEYS = {
    "img_size": "data.image_size",
    "patch_size": "encoder.patch_size",
    "embed_dim": "encoder.width",
    "depth": "encoder.depth",
    "num_heads": "encoder.heads",
    "mlp_ratio": "encoder.mlp_ratio",
    "decoder_embed_dim": "decoder.width",
    "decoder_depth": "decoder.depth",
    "decoder_num_heads": "decoder.heads",
    "mask_ratio": "mask.ratio",
}
MAE_DEFAULTS = {
    **{"img_size": 224, "patch_size": 16, "embed_dim": 1024, "depth": 24},
    **{"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16, "mlp_ratio": 4.0},
}
"""Of their MaskedAutoencoderViT."""
MAE_RENAMED = {
    "patch_embed.proj.": "encoder.embed.",
    "pos_embed": "encoder.positions",
    "cls_token": "encoder.cls_token",
    "blocks.": "encoder.blocks.",
    "norm.": "encoder.norm.",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.positions",
    "decoder_pred.": "decoder.head.",
    "decoder_": "decoder.",
}


def load_official(
    source: str | Path | Mapping[str, Any], config: Mapping[str, Any] | Config
) -> tuple[LatentMIM, Config]:
    """A checkpoint of the authors' trainer as an objective that computes what theirs does.

    Args:
        source: a `.pth` of their trainer, a `.safetensors` file, or a state dict. The weights may lie
            under `state_dict` and their names may carry DistributedDataParallel's `module.` prefix.
        config: the arguments of their model (`grid_size`, `patch_size`, `embed_dim`, ...; the
            projector's `mlp_depth` and `mlp_dim` as `proj_depth` and `proj_dim`), or our own config.

    Returns:
        The objective, in evaluation mode, and the config that describes it. Run it on given views by
        `objective.output(patchify(images, patch_size), View(visible, masked), similarity_aim)`.

    Raises:
        UserError: the file cannot be read without running code from it, the config has an unknown key
            or value, or the weights' names or shapes are not the config's: the first of each kind of
            difference are listed.
    """
    ours = config if isinstance(config, Config) else translate(config)
    weights = read_weights(source)
    try:
        channels = weights["encoder.embed.proj.weight"].shape[1] // ours.section("encoder").patch_size ** 2
    except (KeyError, IndexError):
        raise UserError("the checkpoint has no encoder.embed.proj.weight: not one of the authors'") from None
    objective = build(ours, Setup(ours.data.image_size, channels, classes=0))
    if not isinstance(objective, LatentMIM):
        raise UserError(f"the config is of {ours.objective}, expected latent_mim")
    load_renamed(objective, weights, our_name)
    return objective.eval(), ours


def load_mae(
    source: str | Path | Mapping[str, Any], config: Mapping[str, Any] | Config
) -> tuple[PixelMIM, Config]:
    """A checkpoint of MAE's authors, encoder and decoder, as an objective that computes what theirs does.

    Of a file with the encoder alone, as they have released, the decoder is as it is initialised: the features
    are theirs, what it predicts is nothing.

    Args:
        source: a `.pth` of their trainer, a `.safetensors` file, or a state dict; the weights may lie under
            `model`.
        config: the arguments of their MaskedAutoencoderViT (`img_size`, `embed_dim`, ...) and of its loss
            (`norm_pix_loss`, `mask_ratio`), or our own config.

    Returns:
        The objective, in evaluation mode, and the config that describes it. Run it on given views by
        `objective.output(patchify(images, patch_size), View(visible, masked))`.

    Raises:
        UserError: as `load_official`.
    """
    ours = config if isinstance(config, Config) else translate_mae(config)
    weights = read_weights(source)
    if (embed := weights.get("patch_embed.proj.weight")) is None or embed.ndim != 4:
        raise UserError("the checkpoint has no patch_embed.proj.weight: not one of MAE's authors")
    objective = build(ours, Setup(ours.data.image_size, embed.shape[1], classes=0))
    if not isinstance(objective, PixelMIM):
        raise UserError(f"the config is of {ours.objective}, expected pixel_mim")
    load_renamed(objective, weights, our_mae_name, "decoder." if without_decoder(weights) else "")
    return objective.eval(), ours


def without_decoder(weights: Mapping[str, Tensor]) -> bool:
    """Whether MAE's weights are those of its encoder alone."""
    return not any(our_mae_name(name).startswith("decoder.") for name in weights)


LAYOUTS: dict[str, Callable[..., tuple[Any, Config]]] = {"latent_mim": load_official, "mae": load_mae}
"""Whose checkpoint a file is, to what reads it."""


def layout_of(weights: Mapping[str, Tensor], file: str | Path) -> str:
    """Whose checkpoint weights are, by their names.

    Raises:
        UserError: they are neither's, or a classifier's of timm, which has names as MAE has.
    """
    if "encoder.embed.proj.weight" in weights:
        return "latent_mim"
    if {"cls_token", "patch_embed.proj.weight"} <= weights.keys() and "head.weight" not in weights:
        return "mae"
    raise UserError(
        f"{file}: its names are neither Latent MIM's nor MAE's: give --layout latent_mim or mae; weights of "
        "timm's are judged as timm:<name> --weights FILE"
    )


def read_arguments(text: str) -> dict[str, Any]:
    """The authors' arguments of a model, as `--model` gives them.

    Raises:
        UserError: they are no mapping.
    """
    found = parse_yaml(text, "--model").plain()
    if not isinstance(found, dict):
        raise UserError(f"--model: expected a mapping such as '{{embed_dim: 768}}', found {text}")
    return found


def translate_mae(config: Mapping[str, Any]) -> Config:
    """The arguments of MAE's authors as our config; what is left out is as in their code."""
    given = with_heads(MAE_DEFAULTS | dict(config))
    given.pop("in_chans", None)
    if not isinstance(normalised := given.pop("norm_pix_loss", False), bool):
        raise UserError(f"official config: norm_pix_loss: expected true or false, found {show(normalised)}")
    decoder = {"decoder": "self_attention", "decoder.cues": False, "decoder.mlp_ratio": given["mlp_ratio"]}
    refuse_unknown(given, MAE_KEYS)
    changes = {MAE_KEYS[key]: value for key, value in given.items()}
    loss = "norm_mse" if normalised else "mse"
    return checked({"objective": "pixel_mim", "loss": loss} | decoder | changes, MAE_KEYS)


def translate(config: Mapping[str, Any]) -> Config:
    """The arguments of Latent MIM's authors as our config; what is left out is as in their code."""
    given = with_heads(DEFAULTS | {"grid_size": 14, "num_vis": 20} | dict(config))
    for key in ("grid_size", "num_vis", "patch_size"):
        if type(given[key]) is not int or given[key] < 1:
            raise UserError(
                f"official config: {key}: expected a whole number above 0, found {show(given[key])}"
            )
    grid = given.pop("grid_size")
    changes: dict[str, Any] = {
        "collapse.target_sees": "masked" if given.pop("mask_target", True) else "all",
        "data.image_size": grid * given["patch_size"],
        "decoder.mlp_ratio": given["mlp_ratio"],
    }
    name = given.pop("loss", "infonce_patches")
    if name not in LOSSES:
        raise UserError(f"official config: loss {name!r} is unknown; theirs are {', '.join(LOSSES)}")
    changes["loss"] = LOSSES[name]
    changes["mask.ratio"] = 1 - given.pop("num_vis") / grid**2
    given.pop("in_chans", None)
    if not given.pop("freeze_pe", True):
        raise UserError("official config: freeze_pe: false (learned positions) is not supported")
    if given.pop("target_depth", given["depth"]) != given["depth"]:
        raise UserError("official config: target_depth must equal depth, the target is a copy of the encoder")
    refuse_unknown(given, KEYS)
    changes |= {KEYS[key]: value for key, value in given.items()}
    if changes["loss"] != "patch_discrimination":  # theirs has a temperature whatever the loss
        changes.pop("loss.tau", None)
    return checked(changes, KEYS)


def checked(changes: Mapping[str, Any], names: Mapping[str, str]) -> Config:
    """Our config of some keys, which the authors have other names for.

    Raises:
        UserError: a value is not one, or does not go with the others.
    """
    try:
        return Config.read(merge({}, dict(changes)))
    except ValidationError as error:
        first, theirs = error.errors()[0], {ours: name for name, ours in names.items()}
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, CombinationError):
            raise UserError(f"official config: {theirs.get(cause.key, cause.key)}: {cause.message}") from None
        key = ".".join(str(part) for part in first["loc"])
        expected, _ = expectation(first)
        raise UserError(
            f"official config: {theirs.get(key, key)}: expected {expected}, found {show(first['input'])}"
        ) from None


def with_heads(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a model, and of the authors' models the heads, where they are left out."""
    heads = HEADS.get(width := given["embed_dim"])
    if not heads and "num_heads" not in given:
        raise UserError(
            f"official config: num_heads is missing, and no model of theirs is {show(width)} wide"
        )
    return {"num_heads": heads} | given


def refuse_unknown(given: Mapping[str, Any], known: Mapping[str, str]) -> None:
    """A mistyped argument must not fall back to a default."""
    if unknown := sorted(set(given) - set(known)):
        raise UserError(f"official config: unknown keys {', '.join(unknown)}; known: {', '.join(known)}")


def read_weights(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """Names to tensors, wrapper and prefix removed; the pickle is read by torch's safe reader alone."""
    loaded: Any = source
    if isinstance(source, str | Path):
        path = Path(source)
        try:
            if path.suffix == ".safetensors":
                loaded = load_file(path)
            else:
                # the authors' trainers keep their arguments in it, which hold nothing that runs
                with torch.serialization.safe_globals([argparse.Namespace]):
                    loaded = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            reason = COLOURS.sub("", str(error).splitlines()[0])
            raise UserError(f"{path}: holds more than tensors and is not unpickled ({reason})") from None
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            raise UserError(f"{path}: cannot be read as a checkpoint: {str(error).splitlines()[0]}") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping):
        raise UserError("the checkpoint is not a state dict nor holds one under `state_dict` or `model`")
    return {str(name).removeprefix("module."): tensor for name, tensor in loaded.items()}


def our_name(name: str) -> str:
    """One of Latent MIM's parameter names in ours."""
    part, _, rest = name.partition(".")
    for theirs, ours in RENAMED.items():
        if rest.startswith(theirs) and (part != "decoder" or ours == "positions"):
            rest = ours + rest.removeprefix(theirs)
    return f"{'target.encoder' if part == 'target_encoder' else part}.{rest}"


def our_mae_name(name: str) -> str:
    """One of MAE's parameter names in ours.

    >>> our_mae_name("blocks.0.norm1.bias"), our_mae_name("decoder_norm.bias")
    ('encoder.blocks.0.norm1.bias', 'decoder.norm.bias')
    """
    for theirs, ours in MAE_RENAMED.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def flat_embedding(weight: Float[Tensor, "d c p p"]) -> Float[Tensor, "d v"]:
    """A convolution over patches as a matrix over what `patchify` gives: row, column, channel."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def load_renamed(
    objective: Objective,
    weights: Mapping[str, Tensor],
    rename: Callable[[str], str],
    spared: str = "",
) -> None:
    """Load under our names; position tables are compared instead, and every kind of difference is told.

    What begins with `spared`, if that is not empty, may be missing.
    """
    expected = objective.state_dict()
    found: dict[str, Tensor] = {}
    wrong: list[str] = []
    unknown: list[str] = []
    for name, tensor in weights.items():
        ours = rename(name)
        if tensor.ndim == 4:
            tensor = flat_embedding(tensor)
        if ours.endswith(".positions"):
            table = objective.get_buffer(ours)
            theirs = tensor.flatten(0, -2)[1:]
            if theirs.shape != table.shape or not torch.allclose(theirs, table, atol=1e-5):
                wrong.append(f"{name} is not the fixed sin-cos table")
        elif ours not in expected:
            unknown.append(name)
        elif tensor.shape != expected[ours].shape:
            wrong.append(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected[ours].shape)}")
        else:
            found[ours] = tensor
    seen = {rename(name) for name in weights}
    missing = [name for name in expected if name not in seen and not (spared and name.startswith(spared))]
    told = [first(wrong, "; ")] if wrong else []
    told += [
        f"{kind} {first(names)}" for kind, names in (("unknown", unknown), ("missing", missing)) if names
    ]
    if told:
        raise UserError(f"the checkpoint does not fit the config: {'; '.join(told)}")
    objective.load_state_dict(expected | found)


def first(names: Sequence[str], between: str = ", ") -> str:
    """The first names, and how many more there are.

    >>> first(["a", "b"]), first(["a", "b", "c", "d", "e"])
    ('a, b', 'a, b, c and 2 more')
    """
    more = len(names) - SHOWN
    return between.join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
