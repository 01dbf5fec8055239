"""Few-shot classification: a logistic regression on the frozen features of a few images of each class.

MSN's protocol (arXiv 2204.07141, section 4, and its code): each feature centred over its channels and scaled
to unit length, multinomial logistic regression without intercept, images not augmented. MSN lists its images
and states one figure for each list; here they are drawn, and the figure is a mean over draws.
"""

import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from lmim.evaluate.features import Frozen
from lmim.variants import PositiveInt

METRICS = {
    "fewshot_1": {"label": "1-shot top-1", "unit": "%", "better": "higher"},
    "fewshot_1_interval": {"label": "1-shot top-1, ± over draws", "unit": "%"},
    "fewshot_2": {"label": "2-shot top-1", "unit": "%", "better": "higher"},
    "fewshot_2_interval": {"label": "2-shot top-1, ± over draws", "unit": "%"},
    "fewshot_5": {"label": "5-shot top-1", "unit": "%", "better": "higher"},
    "fewshot_5_interval": {"label": "5-shot top-1, ± over draws", "unit": "%"},
    "fewshot_10": {"label": "10-shot top-1", "unit": "%", "better": "higher"},
    "fewshot_10_interval": {"label": "10-shot top-1, ± over draws", "unit": "%"},
    "fewshot_1pc": {"label": "top-1 of 1 % of labels", "unit": "%", "better": "higher"},
    "fewshot_1pc_interval": {"label": "top-1 of 1 % of labels, ± over draws", "unit": "%"},
    "fewshot_10pc": {"label": "top-1 of 10 % of labels", "unit": "%", "better": "higher"},
    "fewshot_10pc_interval": {"label": "top-1 of 10 % of labels, ± over draws", "unit": "%"},
}
SECONDS = 10

PENALTY = 2.5e-4
"""MSN's: the mean cross-entropy of n images is minimised with PENALTY / n times half the squared weights."""
ITERATIONS = 300
"""Of L-BFGS, at most: as many as MSN allows its solver passes."""
CHUNK = 4096
"""Images of which the classes' scores are held at once."""


def fewshot(frozen: Frozen, *, draws: PositiveInt = 5) -> dict[str, float]:
    """Accuracy in % on the judged images, mean and half-width of the 95 % t-interval over draws.

    `draws` is how many times the images of each number are drawn; the half-width of a single one is NaN.
    Parts are of each class, rounded, and at least one image of it. A class of fewer images than asked for
    gives all that it has.
    """
    amounts = {"1": 1, "2": 2, "5": 5, "10": 10, "1pc": 0.01, "10pc": 0.1}
    figures: dict[str, float] = {}
    for name, amount in amounts.items():
        scores = [_top1(frozen, drawn(frozen.train.labels, amount, draw)) for draw in range(draws)]
        mean, half = interval(scores)
        figures |= {f"fewshot_{name}": mean, f"fewshot_{name}_interval": half}
    return figures


def drawn(labels: Int[Tensor, " n"], amount: int | float, draw: int) -> Int[Tensor, " k"]:
    """Which images the `draw` takes, in order: `amount` of each class, or that part of it if below 1.

    The images of a larger amount hold those of a smaller one of the same draw.

    >>> drawn(torch.tensor([2, 0, 2, 2, 0]), 2, 0).shape, drawn(torch.tensor([0, 0, 1]), 0.01, 0).shape
    (torch.Size([4]), torch.Size([2]))
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(draw))
    order = order[labels[order].argsort(stable=True)]  # class by class
    counts = labels.bincount()
    wanted = torch.full_like(counts, int(amount)) if amount >= 1 else (amount * counts).round().clamp(min=1)
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[labels[order]]
    return order[place < wanted[labels[order]]].sort().values


def interval(values: list[float]) -> tuple[float, float]:
    """Mean of some values, and the half-width of its 95 % t-interval: NaN for a single one.

    >>> mean, half = interval([1.0, 3.0])
    >>> mean, round(half, 3)
    (2.0, 12.706)
    """
    found = torch.tensor(values, dtype=torch.float64)
    if len(found) < 2:
        return float(found.mean()), float("nan")
    half = float(stats.t.ppf(0.975, len(found) - 1)) * float(found.std()) / len(found) ** 0.5
    return float(found.mean()), half


def prepared(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Each feature less the mean of its own channels, at unit length, as MSN's code has them."""
    return F.normalize(features - features.mean(dim=1, keepdim=True), dim=1)


def logistic(features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], classes: int) -> Float[Tensor, "d c"]:
    """The weights without intercept of a multinomial logistic regression, by L-BFGS from zero, in float64.

    Sought in coordinates in which the curvature at zero is one in all directions: the optimum is the same and
    is found in a tenth of the time. Loss and gradient are summed over batches: only features are of size n.
    """
    values, basis = torch.linalg.eigh(features.double().T @ features.double())
    scale = (values.clamp_min(0) / classes + PENALTY).rsqrt()
    basis = basis * scale
    x, penalty = features.double() @ basis, PENALTY * scale.square()[:, None]
    weights = x.new_zeros(x.shape[1], classes).requires_grad_()

    def loss() -> float:
        with torch.no_grad():
            total, gradient = (penalty * weights.square()).sum() / 2, penalty * weights
            for part, y in zip(torch.split(x, CHUNK), torch.split(labels, CHUNK), strict=True):
                likely = F.log_softmax(part @ weights, dim=1)
                total = total + F.nll_loss(likely, y, reduction="sum")
                gradient = gradient + part.T @ (likely.exp() - F.one_hot(y, classes))
            weights.grad = gradient / len(x)
            return float(total) / len(x)

    solver = torch.optim.LBFGS(
        [weights],
        max_iter=ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    solver.step(loss)  # type: ignore[no-untyped-call]
    found: Tensor = basis @ weights.detach()
    return found


def _top1(frozen: Frozen, rows: Int[Tensor, " k"]) -> float:
    """Accuracy in % of what these of the training images teach."""
    x, y = frozen.train.rows(rows)
    weights = logistic(prepared(x), y, frozen.classes)
    correct = [(prepared(x).double() @ weights).argmax(dim=1) == y for x, y in frozen.judged.batches()]
    return 100 * float(torch.cat(correct).double().mean())
