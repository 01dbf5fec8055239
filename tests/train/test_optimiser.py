"""Which parameters decay."""

from lmim.config import Config
from lmim.objectives import Setup, build
from lmim.train.optimiser import parameter_groups


def test_weight_decay_spares_biases_norms_and_embeddings() -> None:
    """METHOD: class and mask tokens do decay, the patch embedding and the decoder's input do not."""
    objective = build(Config.read({"projector": {"width": 16}}), Setup(side=20, channels=1, classes=1))
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in parameter_groups(objective, 0.05))
    assert {"encoder.cls_token", "decoder.mask_token", "encoder.blocks.0.attn.qkv.weight"} <= decayed
    assert {"encoder.embed.weight", "decoder.embed.weight", "encoder.norm.weight"} <= free
    assert not any("bias" in name for name in decayed)
    assert not any(name.startswith("target") for name in decayed | free)
