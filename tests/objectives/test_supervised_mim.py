"""Classification with masked image modelling beside it."""

from typing import Any

import pytest
import torch
from timm.layers.drop import DropPath
from torch import Tensor

from lmim import objectives
from lmim.config import Config, merge
from lmim.data import open_dataset
from lmim.objectives import Setup
from lmim.objectives.supervised_mim import SupervisedMIM
from lmim.train.batches import batches, generator
from lmim.train.loop import Run

TINY: dict[str, Any] = {
    "objective": "supervised_mim",
    "data": {"name": "digits", "image_size": 8, "train_images": 256},
    "encoder": {"patch_size": 2, "width": 16, "depth": 2, "heads": 2},
    "decoder": {"width": 16, "depth": 1, "heads": 2},
    "projector": {"width": 16},
    "mask": {"ratio": 0.5},
    "optim": {"epochs": 1, "batch_size": 32, "base_lr": 0.01},
    "run": {"device": "cpu"},
}
PIXELS = {"collapse": "pixels", "loss": "norm_mse"}
TARGETS: dict[str, dict[str, Any]] = {
    "pixels": PIXELS,
    "ema": {"collapse": "ema", "loss": "patch_discrimination"},
    "kmeans": {"collapse": {"kind": "kmeans", "codes": 8}, "loss": "cross_entropy"},
    "vicreg": {"collapse": "vicreg", "loss": "mse"},
}
LABELS = torch.arange(6)


def tiny(*changes: dict[str, Any], **own: Any) -> Config:
    tree = TINY
    for change in (*changes, {"supervised_mim": own}):
        tree = merge(tree, change)
    return Config.read(tree)


def build(config: Config) -> SupervisedMIM:
    torch.manual_seed(0)
    objective = objectives.build(config, Setup(8, 1, 10))
    assert isinstance(objective, SupervisedMIM)
    return objective


def step(objective: SupervisedMIM, labels: Tensor = LABELS) -> dict[str, Tensor]:
    views = torch.randn(6, 1, 1, objective.crop_side, objective.crop_side, generator=generator(0, "views"))
    own = objective.draw(torch.ones(6), generator(0, "step")).own
    scheduled = {name: torch.tensor(value) for name, value in objective.scheduled(0.5).items()}
    torch.manual_seed(0)
    found: dict[str, Tensor] = objective(views, labels, own, scheduled)
    return found


def gradients(objective: SupervisedMIM, figure: Tensor) -> set[str]:
    """The parts of the objective that a figure teaches."""
    learn = {name: part for name, part in objective.named_parameters() if part.requires_grad}
    found = torch.autograd.grad(figure, [*learn.values()], allow_unused=True)
    taught = {name for name, one in zip(learn, found, strict=True) if one is not None and one.any()}
    return {name.split(".")[0] if "encoder.norm" not in name else "encoder.norm" for name in taught}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("classify", ["full", "masked", "both"])
def test_either_task_teaches_the_encoder_and_its_own_head_alone(target: str, classify: str) -> None:
    """Labels in the decoder, or pixels in the classifier, would be another method under this name."""
    objective = build(tiny(TARGETS[target], classify=classify))
    found = step(objective)
    assert found.keys() == {"loss", "classification", "mim"}
    torch.testing.assert_close(found["loss"], found["classification"] + found["mim"])
    assert gradients(objective, found["classification"]) == {"encoder", "norm", "head"}
    found = step(objective)
    assert gradients(objective, found["mim"]) == {"encoder", "encoder.norm", "decoder"}
    other = step(objective, LABELS.flip(0))
    assert other["mim"] == found["mim"]
    assert other["classification"] != found["classification"]


@pytest.mark.parametrize(
    ("classify", "weight", "passes"),
    [("full", 1.0, 2), ("masked", 1.0, 1), ("both", 1.0, 2), ("full", 0.0, 1), ("masked", 0.0, 1)],
)
def test_one_pass_of_the_encoder_serves_both_tasks_where_it_can(
    classify: str, weight: float, passes: int
) -> None:
    """A step of a half more, in the very arm whose point is that it costs less."""
    objective = build(tiny(PIXELS, classify=classify, mim_weight=weight))
    seen: list[int] = []
    objective.encoder.blocks[0].register_forward_hook(lambda block, given, out: seen.append(out.shape[1]))
    step(objective)
    assert len(seen) == passes
    assert set(seen) <= {17, 9}
    assert (17 in seen) == (classify != "masked")


def test_the_weight_is_that_of_the_second_task() -> None:
    """An axis over it would compare equal arms."""
    one, three = (step(build(tiny(PIXELS, mim_weight=weight))) for weight in (1.0, 3.0))
    assert three["mim"] == one["mim"]
    torch.testing.assert_close(three["loss"], one["classification"] + 3 * one["mim"])


def test_both_is_the_mean_of_the_two() -> None:
    """Twice the classification would be another weight of the second task."""
    full, masked, both = (
        step(build(tiny(PIXELS, classify=classify)))["classification"]
        for classify in ("full", "masked", "both")
    )
    torch.testing.assert_close(both, (full + masked) / 2)
    assert full != masked


CHANGED = {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "drop_path": 0.2, "erasing": 0.5}


@pytest.mark.parametrize("own", [{}, CHANGED], ids=["plain", "changed"])
def test_without_the_second_task_it_is_supervised(own: dict[str, Any]) -> None:
    """The arms would differ in more than the task that the ablation is about."""
    trained = []
    plain = {key: value for key, value in TINY.items() if key not in ("decoder", "projector", "mask")}
    for config in (
        tiny(mim_weight=0.0, **own),
        Config.read(plain | {"objective": "supervised", "supervised": own}),
    ):
        run = Run(config, open_dataset(config.data), torch.device("cpu"))
        for micro_batches in batches(run.dataset.train, config, run.objective, 0, 4):
            run.step(micro_batches)
        trained.append((run.training_metrics(), run.objective.state_dict()))
    (with_mim, weights), (supervised, expected) = trained
    assert with_mim["train/loss"] == supervised["train/loss"]
    for name, tensor in expected.items():
        assert torch.equal(tensor, weights[name]), name


def test_with_it_the_classifier_begins_alike() -> None:
    """Arms of a seed are paired; another first encoder would be noise in every difference."""
    config = tiny(PIXELS)
    plain = {"objective": "supervised", "data": TINY["data"], "encoder": TINY["encoder"]}
    torch.manual_seed(0)
    expected = objectives.build(Config.read(plain), Setup(8, 1, 10)).state_dict()
    weights = build(config).state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in expected.items())
    crops = [
        one.draw(torch.ones(6), generator(0, "step")).boxes
        for one in (build(config), objectives.build(Config.read(plain), Setup(8, 1, 10)))
    ]
    assert torch.equal(*crops)


def test_a_momentum_target_follows_and_drops_no_path() -> None:
    """What is to be predicted would be noise, or an encoder that never learns."""
    objective = build(tiny(TARGETS["ema"], drop_path=0.5))
    [first, *_] = [part.drop_prob for part in objective.encoder.modules() if isinstance(part, DropPath)]
    assert first == 0.5
    dropped = [part.drop_prob for part in objective.target.modules() if isinstance(part, DropPath)]
    assert dropped == [0.0, 0.0]
    before = objective.target.get_parameter("encoder.embed.weight").clone()
    with torch.no_grad():
        objective.encoder.embed.weight += 1
    objective.after_step({"momentum": 0.75})
    torch.testing.assert_close(objective.target.get_parameter("encoder.embed.weight"), before + 0.25)


@pytest.mark.parametrize("target", TARGETS)
def test_losses_are_compared_in_float32(target: str) -> None:
    """In bfloat16 some losses would be rounded and others not, and the ablation would compare that."""
    config = tiny(TARGETS[target], {"optim": {"precision": "bfloat16"}}, classify="both")
    run = Run(config, open_dataset(config.data), torch.device("cpu"))
    ((batch,), *_) = batches(run.dataset.train, config, run.objective, 0, run.steps)
    found = run.losses(batch, {name: torch.tensor(value) for name, value in run.scheduled().items()})
    assert {one.dtype for one in found.values()} == {torch.float32}
