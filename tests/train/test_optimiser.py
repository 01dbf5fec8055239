"""Which parameters decay, and how fast each layer learns."""

import pytest

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


@pytest.mark.parametrize("objective", ["supervised", "contrastive_mim"])
def test_a_layer_learns_less_than_the_one_after_it(objective: str) -> None:
    """Fine-tuning would forget what the first layers have learned, or train the classifier too slowly."""
    built = build(Config.read({"objective": objective}), Setup(side=20, channels=1, classes=3))
    names = {id(parameter): name for name, parameter in built.named_parameters()}
    groups = parameter_groups(built, 0.05, layer_decay=0.5)
    scales = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert scales.keys() == {name for name, one in built.named_parameters() if one.requires_grad}
    encoder = {name.partition("encoder.")[2]: scale for name, scale in scales.items() if "encoder." in name}
    assert encoder["embed.weight"] == encoder["cls_token"] == 0.5**5
    assert [encoder[f"blocks.{n}.mlp.fc1.weight"] for n in range(4)] == [0.5**4, 0.5**3, 0.5**2, 0.5]
    assert {scale for name, scale in scales.items() if "encoder." not in name} == {1.0}
    plain, free = ({id(p) for p in group["params"]} for group in parameter_groups(built, 0.05))
    assert decay == {names[one]: 0.05 for one in plain} | {names[one]: 0.0 for one in free}
