"""Masked image modelling block by block: each learns from its own task alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lmim import objectives
from lmim.config import Config, merge
from lmim.objectives import Objective, Setup
from lmim.objectives.block_mim import BlockMIM
from lmim.train.batches import generator

SMALL: dict[str, Any] = {
    "objective": "block_mim",
    "data": {"image_size": 8},
    "encoder": {"patch_size": 2, "width": 16, "depth": 4, "heads": 2},
    "decoder": {"kind": "self_attention", "cues": False, "width": 16, "depth": 1, "heads": 2},
    "loss": {"kind": "norm_mse"},
}


def build(**changes: Any) -> Objective:
    torch.manual_seed(0)
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config = Config.read(merge(SMALL, changes))
    return objectives.build(config, Setup(side=8, channels=1, classes=10))


def step(objective: Objective) -> dict[str, Tensor]:
    """The figures of a step, its gradients left in the parameters."""
    views = torch.randn(5, 1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    draw = objective.draw(torch.ones(5), generator(0, "step"))
    found: dict[str, Tensor] = objective(views, torch.zeros(5, dtype=torch.int64), draw.own, {})
    found["loss"].backward()  # type: ignore[no-untyped-call]
    return found


def gradients(objective: Objective) -> dict[str, Tensor]:
    return {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


def test_one_block_is_mae() -> None:
    """The end-to-end arm that blocks are compared with would be another method."""
    mae, block = build(objective="pixel_mim"), build(block_mim__blocks=1)
    assert torch.equal(step(mae)["loss"], step(block)["loss"])
    theirs = {name.replace("decoder.", "decoders.0."): grad for name, grad in gradients(mae).items()}
    ours = gradients(block)
    assert theirs.keys() == ours.keys()
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("blocks", [2, 4])
def test_no_gradient_crosses_a_block(blocks: int) -> None:
    """With one that does, it is end-to-end training, and its memory."""
    objective = build(block_mim__blocks=blocks)
    assert isinstance(objective, BlockMIM)
    step(objective)
    parts = [{id(p) for p in objective.block(number).parameters()} for number in range(blocks)]
    before = {name: grad.clone() for name, grad in gradients(objective).items()}
    assert before.keys() == {name for name, _ in objective.named_parameters()}  # every one learns
    with torch.no_grad():  # another task for the last block alone
        for parameter in objective.decoders[-1].parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    objective.zero_grad()
    step(objective)
    for name, parameter in objective.named_parameters():
        same = torch.equal(before[name], gradients(objective)[name])
        assert same == (id(parameter) not in parts[-1]), name
    assert sum(map(len, parts)) == len({i for part in parts for i in part})  # none is in two


def test_a_blocks_gradient_is_that_of_its_own_loss() -> None:
    """The gradients that are kept until the trainer asks must be those of what it minimises."""
    objective = build(block_mim__blocks=2)
    found = step(objective)
    torch.testing.assert_close(found["loss"], found["block1"] + found["block2"])
    ours = {name: grad.clone() for name, grad in gradients(objective).items()}
    objective.zero_grad()
    views = torch.randn(5, 1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    draw = objective.draw(torch.ones(5), generator(0, "step"))
    (objective(views, torch.zeros(5, dtype=torch.int64), draw.own, {})["loss"] / 2).backward()
    for name, grad in gradients(objective).items():
        torch.testing.assert_close(2 * grad, ours[name], rtol=1e-6, atol=1e-9)


class Kept:
    """A tensor that a graph holds on to; counted as long as it does."""

    now = most = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Kept.now += tensor.nbytes
        Kept.most = max(Kept.most, Kept.now)

    def __del__(self) -> None:
        Kept.now -= self.tensor.nbytes


def test_activations_are_gone_before_the_next_block_runs() -> None:
    """Memory is the whole point of training block by block."""

    def most(blocks: int) -> int:
        """Bytes that graphs hold on to at once, at most."""
        objective = build(block_mim__blocks=blocks)
        own = objective.draw(torch.ones(64), generator(0, "step")).own
        Kept.now = Kept.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            objective(torch.randn(64, 1, 1, 8, 8), torch.zeros(64, dtype=torch.int64), own, {})
        return Kept.most

    one, two, four = map(most, (1, 2, 4))
    assert two < 0.8 * one
    assert four < 0.9 * two  # the decoder is as deep for each


def test_a_prefix_is_an_encoder_of_its_own_depth() -> None:
    """One run is to give backbones of several depths: `evaluate: [{knn: {layer: 2}}]` judges one of them."""
    deep, images = build(block_mim__blocks=4).eval(), torch.randn(3, 1, 8, 8)
    shallow = build(block_mim__blocks=2, encoder__depth=2).eval()
    weights = {name: tensor for name, tensor in deep.state_dict().items() if name in shallow.state_dict()}
    shallow.load_state_dict(weights, strict=False)
    assert torch.equal(deep.features(images, layer=2), shallow.features(images))
    assert torch.equal(deep.features(images, layer=4), deep.features(images))
    assert not torch.equal(deep.features(images, layer=3), deep.features(images))


def test_more_blocks_than_layers_are_refused() -> None:
    """Some block would have nothing to learn with."""
    with pytest.raises(ValueError, match=r"block_mim.blocks: 5 is more than encoder.depth 4"):
        build(block_mim__blocks=5)
    uneven = build(block_mim__blocks=3)
    assert isinstance(uneven, BlockMIM)
    layers = [uneven.block(number)[0] for number in range(3)]
    assert [len(part) for part in layers if isinstance(part, torch.nn.Sequential)] == [1, 1, 2]
