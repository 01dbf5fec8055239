"""MAE's linear probe (arXiv 2111.06377, A.1, and its code) on frozen features, many learning rates at once.

BatchNorm without affine (eps 1e-6), a linear layer, LARS, warm-up over the first ninth of the epochs, cosine
to 0. MAE shows each image anew, as a random resized crop, flipped or not; here features are made once, so
images are seen as they are judged, and figures lie below MAE's where its views help. MAE's other choices are
settings: `{linear_sgd: {batch_size: 16384, features: cls, norm: true}}`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmim.evaluate.features import Frozen, Labelled
from lmim.schedules import cosine_decay
from lmim.variants import PositiveInt

METRICS = {
    "linear_sgd_top1": {"label": "linear top-1 by SGD", "unit": "%", "better": "higher"},
    "linear_sgd_lr": {"label": "base learning rate picked for SGD"},
}
SECONDS = 6

RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Learning rates at a batch of 256, scaled with the batch; MAE's is 0.1, at 16,384 of 1.28 million images."""
MOMENTUM, TRUST = 0.9, 0.001
WARMUP = 1 / 9
HELD_OUT = 0.1
"""The part of the training images on which the learning rate is picked; the probe that is judged is fitted to
the others alone."""


def linear_sgd(
    frozen: Frozen, *, epochs: PositiveInt = 90, batch_size: PositiveInt = 1024
) -> dict[str, float]:
    """Accuracy in % on the judged images at the learning rate that is best on held-out training images.

    `epochs` is how often each training image is seen; `batch_size` how many make a step.

    Raises:
        ValueError: there are fewer than three training images.
    """
    train = frozen.train
    if len(train) < 3:
        raise ValueError(f"linear_sgd needs three training images or more, found {len(train)}")
    generator = torch.Generator().manual_seed(0)
    fit, held = _hold_out(len(train), generator)
    norm, probes = trained(train, fit, frozen.classes, epochs, batch_size, generator)
    right = torch.zeros(len(RATES), device=train.device)
    for rows in torch.split(held, 1024):
        x, y = train.rows(rows)
        right += (probes.scores(norm(x)).argmax(dim=2) == y[:, None]).sum(dim=0)
    best = int(right.argmax())
    correct = [(probes.scores(norm(x))[:, best].argmax(dim=1) == y) for x, y in frozen.judged.batches()]
    return {
        "linear_sgd_top1": 100 * float(torch.cat(correct).double().mean()),
        "linear_sgd_lr": RATES[best],
    }


class Probes:
    """A linear classifier for each learning rate, from the same start; LARS as MAE has it.

    The step of a weight matrix is scaled to TRUST of the matrix's norm, that of a bias is not. (timm's LARS
    scales neither without weight decay, or both.)
    """

    def __init__(self, weight: Float[Tensor, "d c"], rates: Float[Tensor, " r"]) -> None:
        self.rates = rates
        self.weight: Float[Tensor, "d r c"] = weight[:, None].repeat(1, len(rates), 1)
        self.bias: Float[Tensor, "r c"] = torch.zeros_like(self.weight[0])
        self.speeds = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    def scores(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b r c"]:
        """Of each class, by each classifier."""
        return (x @ self.weight.flatten(1)).view(len(x), *self.bias.shape) + self.bias

    def step(self, x: Float[Tensor, "b d"], y: Int[Tensor, " b"], pace: float) -> None:
        """One step against the mean cross-entropy, at so much of each learning rate."""
        error = self.scores(x).softmax(dim=2)
        error[torch.arange(len(x), device=x.device), :, y] -= 1
        error /= len(x)
        slope = (x.T @ error.flatten(1)).view_as(self.weight)
        long, steep = (torch.linalg.vector_norm(part, dim=(0, 2)) for part in (self.weight, slope))
        trust = torch.where((long > 0) & (steep > 0), TRUST * long / steep, 1)
        fast, biased = self.speeds
        fast.mul_(MOMENTUM).add_(slope * trust[:, None])
        biased.mul_(MOMENTUM).add_(error.sum(dim=0))
        rates = (pace * self.rates)[:, None]
        self.weight -= rates * fast
        self.bias -= rates * biased


def trained(
    train: Labelled,
    rows: Int[Tensor, " n"],
    classes: int,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
) -> tuple[nn.BatchNorm1d, Probes]:
    """The norm, ready to judge, and the classifiers fitted to these training images."""
    batch_size = min(batch_size, len(rows))
    steps = len(rows) // batch_size  # an incomplete batch is left out, as MAE does
    weight = 0.01 * torch.randn(train.features.shape[1], classes, generator=generator)
    rates = torch.tensor(RATES, device=train.device) * batch_size / 256
    probes = Probes(weight.to(train.device), rates)
    # the average of all steps, for the features stay the same: that of the last ten would be off after a few
    norm = nn.BatchNorm1d(len(weight), eps=1e-6, momentum=None, affine=False, device=train.device)
    for epoch in range(epochs):
        order = rows[torch.randperm(len(rows), generator=generator)]
        for step in range(steps):
            x, y = train.rows(order[step * batch_size : (step + 1) * batch_size])
            probes.step(norm(x), y, paced((epoch + step / steps) / epochs))
    return norm.eval(), probes


def paced(done: float) -> float:
    """What part of the learning rate is used once this part of the steps is done.

    >>> paced(0.0), paced(WARMUP), round(paced(5 / 9), 6), paced(1.0)
    (0.0, 1.0, 0.5, 0.0)
    """
    if done < WARMUP:
        return done / WARMUP
    return cosine_decay((done - WARMUP) / (1 - WARMUP), 1.0, 0.0)


def _hold_out(count: int, generator: torch.Generator) -> tuple[Int[Tensor, " n"], Int[Tensor, " h"]]:
    order = torch.randperm(count, generator=generator)
    held = max(1, round(HELD_OUT * count))
    return order[held:], order[:held]
