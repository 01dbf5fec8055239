"""An attentive probe: what a linear layer says of patch features that one learned query has pooled.

The encoder is frozen. The mean of the patches is one choice of what to keep of them, which may not suit what
an objective trains; here the probe chooses, as V-JEPA's (arXiv 2404.08471) and CAPI's (arXiv 2502.08769) do.
V-JEPA's has an MLP on top, this one has none. It is trained by AdamW, weight decay 0.01, cosine to 0, without
warm-up; images are seen as they are judged.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lmim.data import Split
from lmim.evaluate.features import BATCH, Frozen, Model, stored
from lmim.schedules import cosine_decay
from lmim.variants import Positive, PositiveInt

METRICS = {"attentive_top1": {"label": "attentive top-1", "unit": "%", "better": "higher"}}
SECONDS = 17

KEPT = 4 * 2**30
"""Bytes of patch features that a file may take; those of more images are made anew every epoch."""


def attentive(
    frozen: Frozen, *, heads: PositiveInt = 4, epochs: PositiveInt = 20, lr: Positive = 1e-3
) -> dict[str, float]:
    """Accuracy in % on the judged images of a probe fitted to the patches of the training images.

    The query has as many `heads`, each with its own weights over the patches. `epochs` is how often each
    training image is seen, `lr` the largest learning rate, in batches of 256.
    """
    model, split = frozen.model, frozen.model.dataset.train
    read = reader(model, split)
    generator = torch.Generator().manual_seed(0)
    width = read(torch.arange(1)).shape[2]
    probe = Probe(width, frozen.classes, heads, generator).to(model.device)
    fit(probe, read, split.labels, epochs, lr, generator)
    right, judged = 0, frozen.images
    encoded, known = model.encoded(judged, model.patches), torch.split(judged.labels, BATCH)
    for patches, labels in zip(encoded, known, strict=True):
        with torch.no_grad():
            right += int((probe(patches.to(model.device)).argmax(dim=1).cpu() == labels).sum())
    return {"attentive_top1": 100 * right / len(judged)}


def reader(model: Model, split: Split) -> Callable[[Int[Tensor, " b"]], Float[Tensor, "b n d"]]:
    """Gives the patch features of those images of a split that it is asked for, on the device."""

    def encoded(rows: Int[Tensor, " b"]) -> Float[Tensor, "b n d"]:
        return model.patches(model.normalised(*split.read(rows, model.side))).float()

    if len(split) * encoded(torch.arange(1)).numel() * 4 > KEPT:
        return encoded
    kept = stored(model.encoded(split, model.patches))
    return lambda rows: kept[rows].to(model.device)


class Probe(nn.Module):
    """Patches without scale and offset of their own; one query with several heads; a linear layer.

    A head's keys and values are ceil(d / heads) wide. As there is one query and it is the same for all
    images, it goes through the keys' weights first, and patches are averaged before the values' are: the
    outcome is that of multi-head attention, at a part of the cost.
    """

    def __init__(self, width: int, classes: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        own = -(-width // heads)

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * shape[-1] ** -0.5)

        self.query = nn.Parameter(torch.randn(heads, own, generator=generator))
        self.key, self.value = drawn(heads, own, width), drawn(heads, own, width)
        self.weight, self.bias = (
            nn.Parameter(torch.zeros(heads * own, classes)),
            nn.Parameter(torch.zeros(classes)),
        )

    def forward(self, patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b c"]:
        """Scores of the classes."""
        x = F.layer_norm(patches, patches.shape[-1:])
        asked = torch.einsum("ho,hod->dh", self.query, self.key) * self.query.shape[1] ** -0.5
        seen = torch.einsum("bnh,bnd->bhd", (x @ asked).softmax(dim=1), x)
        pooled = torch.einsum("bhd,hod->bho", seen, self.value).flatten(1)
        return pooled @ self.weight + self.bias


def fit(
    probe: Probe,
    read: Callable[[Int[Tensor, " b"]], Float[Tensor, "b n d"]],
    labels: Int[Tensor, " n"],
    epochs: int,
    lr: float,
    generator: torch.Generator,
) -> None:
    """Train a probe on the patches that `read` gives of images."""
    optimiser = torch.optim.AdamW(probe.parameters(), lr, weight_decay=0.01)
    step, steps = 0, epochs * -(-len(labels) // BATCH)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(labels), generator=generator), BATCH):
            for group in optimiser.param_groups:
                group["lr"] = cosine_decay(step / steps, lr, 0.0)
            patches = read(rows)
            loss = F.cross_entropy(probe(patches), labels[rows].to(patches.device))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            step += 1
