"""Our encoders as timm's own models, and any of timm's models as an encoder to be judged."""

from inspect import signature
from typing import Any, cast

import timm
import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lmim.errors import UserError, brief, nearest
from lmim.interop.official import read_weights
from lmim.objectives.supervised import Supervised

ARCHITECTURE = "vit_base_patch16_224"
"""Of timm's registry: the one that every argument is laid over."""


def to_timm(objective: Any) -> VisionTransformer:
    """An encoder of images as timm's own model, in evaluation mode.

    Of `supervised` and `supervised_mim` it is the classifier, of the others what they have as backbone: its
    `forward_features` are our tokens after the final norm, and it pools the patches' mean. Nothing of a
    decoder is left. It is saved, served and fine-tuned as any of timm's.

    Raises:
        UserError: the objective has no encoder of images.
    """
    if not hasattr(objective, "backbone"):
        raise UserError(f"{type(objective).__name__}: has no encoder that timm's model could take")
    model: Any = timm.create_model(ARCHITECTURE, **timm_arguments(objective))
    encoder = objective.backbone()
    table, weights = encoder.positions, encoder.state_dict()
    channels = model.patch_embed.proj.in_channels
    side = model.patch_embed.patch_size[0]
    found = {
        "cls_token": weights["cls_token"],
        "pos_embed": torch.cat([torch.zeros_like(table[:1]), table])[None],  # the class token has no place
        "patch_embed.proj.weight": weights["embed.weight"].view(-1, side, side, channels).permute(0, 3, 1, 2),
        "patch_embed.proj.bias": weights["embed.bias"],
    }
    found |= {name: weight for name, weight in weights.items() if name.startswith("blocks.")}
    norm = encoder.norm if not isinstance(objective, Supervised) else objective.norm
    place = "norm" if isinstance(model.fc_norm, nn.Identity) else "fc_norm"
    found |= {f"{place}.{name}": weight for name, weight in norm.state_dict().items()}
    if isinstance(objective, Supervised):
        found |= {f"head.{name}": weight for name, weight in objective.head.state_dict().items()}
    model.load_state_dict(found)
    return cast(VisionTransformer, model.eval())


def timm_arguments(objective: Any) -> dict[str, Any]:
    """What timm's `create_model` makes the model of an objective with."""
    encoder = objective.backbone()
    classifies, width = isinstance(objective, Supervised), encoder.cls_token.shape[-1]
    values, block = encoder.embed.in_features, encoder.blocks[0]
    side, pooled = objective.patch_size, not classifies or objective.pool == "mean"
    return {
        "img_size": round(len(encoder.positions) ** 0.5) * side,
        "patch_size": side,
        "in_chans": values // side**2,
        "num_classes": objective.head.out_features if classifies else 0,
        "embed_dim": width,
        "depth": len(encoder.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / width,
        "global_pool": "avg" if pooled else "token",
        "fc_norm": classifies and pooled,
    }


class TimmEncoder(nn.Module):
    """One of timm's models as an encoder to be judged: its features are what its own classifier reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.pool = "cls" if getattr(model, "global_pool", "") == "token" else "mean"
        looks = getattr(model, "forward_intermediates", None)
        by_token = looks is not None and "return_prefix_tokens" in signature(looks).parameters
        self.blocks = len(getattr(model, "blocks", ())) if by_token else 0
        """Of a transformer; another model has one layer to look at."""

    @staticmethod
    def side(name: str) -> int:
        """Pixels of the side that a model was made for.

        Raises:
            UserError: timm has no such model.
        """
        if name.partition(".")[0] not in (known := timm.list_models()):
            raise UserError(f"timm:{name}: timm {timm.__version__} has no such model{nearest(name, known)}")
        about = timm.models.get_pretrained_cfg(name)
        return int(about.input_size[-1]) if about else 224

    @classmethod
    def create(cls, name: str, side: int, channels: int, weights: str | None = None) -> "TimmEncoder":
        """A model by timm's name, as timm initialises it with seed 0, or with weights that lie here.

        Weights of timm's model with a classifier, of whatever classes, are taken without it.

        Raises:
            UserError: timm has no such model, it cannot be of this side, or the weights are not its own.
        """
        cls.side(name)
        given: dict[str, Any] = {"in_chans": channels, "num_classes": 0}
        model = None
        # frames of videos are oblong, which some are made for; a convolutional model is of any side
        shapes: list[dict[str, Any]] = [{"img_size": side, "dynamic_img_size": True}, {"img_size": side}, {}]
        for shape in shapes:
            torch.manual_seed(0)
            try:
                model = timm.create_model(name, **given, **shape)
                break
            except TypeError:
                continue
            except (AssertionError, RuntimeError, ValueError) as error:
                raise UserError(f"timm:{name}: cannot be made for {side} px ({brief(error)})") from None
        if model is None:
            raise UserError(f"timm:{name}: cannot be made by name alone")
        if weights is not None:
            with torch.device("meta"):
                classifying = timm.create_model(name, in_chans=channels, num_classes=1)
            classifier = classifying.state_dict().keys() - model.state_dict().keys()
            found = read_weights(weights)
            try:
                model.load_state_dict({key: found[key] for key in found.keys() - classifier})
            except RuntimeError as error:
                raise UserError(
                    f"{weights}: not weights of timm:{name} at {side} px: {brief(error)}"
                ) from None
        return cls(model)

    def statistics(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and deviation that its weights expect, which timm knows of colour; None of other channels."""
        known = self.model.pretrained_cfg
        return (tuple(known["mean"]), tuple(known["std"])) if channels == 3 else None

    def features(self, images: Float[Tensor, "b c s s"], layer: int = 0) -> Float[Tensor, "b d"]:
        """What the model's classifier reads; of an earlier block the mean of its patches."""
        if layer:
            return self.patch_features(images, layer).mean(dim=1)
        found: Tensor = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        return found

    def tokens(
        self, images: Float[Tensor, "b c h w"], layer: int = 0, norm: bool = False
    ) -> Float[Tensor, "b t d"]:
        """A block's tokens: the class token, and one of each patch; without register tokens."""
        if not getattr(self.model, "num_prefix_tokens", 0):
            raise UserError("features, norm: the model has no class token; leave them as they are")
        patches, prefix = self._after(images, layer, norm)
        return torch.cat([prefix[:, :1], patches], dim=1)

    def patch_features(
        self, images: Float[Tensor, "b c h w"], layer: int = 0, norm: bool = False
    ) -> Float[Tensor, "b n d"]:
        """One feature of each patch, or place of a convolutional model, which has one layer to look at."""
        if self.blocks:
            return self._after(images, layer, norm)[0]
        found: Tensor = self.model.forward_features(images)
        if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            return found.flatten(1, 2)
        return found.flatten(2).transpose(1, 2)

    def _after(self, images: Tensor, layer: int, norm: bool) -> tuple[Tensor, Tensor]:
        index = (layer if layer > 0 else self.blocks + layer) - 1
        if not 0 <= index < self.blocks:
            raise UserError(f"layer: expected at most {self.blocks}, the blocks of the model, found {layer}")
        how = {"return_prefix_tokens": True, "output_fmt": "NLC", "intermediates_only": True}
        [found] = self.model.forward_intermediates(images, indices=[index], norm=norm, **how)
        # without class token and registers timm gives the patches alone
        patches, prefix = found if self.model.num_prefix_tokens else (found, found[:, :0])
        return patches, prefix
