"""Where the decoder's queries look: attention of masked patches over visible ones (arXiv 2407.15837)."""

import torch
from jaxtyping import Float
from torch import Tensor

from lmim.axes.decoder import CrossAttention
from lmim.data.splits import spread
from lmim.figures import Arrays, Lacking, Subject, array
from lmim.variants import PositiveInt


def attention(
    trial: Subject, *, images: PositiveInt = 2, queries: PositiveInt = 4, data: str = "", path: str = ""
) -> Arrays:
    """The weights by which masked patches gather the visible latents in the decoder's last block.

    `images` are shown. Of each so many `queries`, spread evenly over the masked patches in the image's order.
    The mean over heads; the class latent, which lies nowhere, is one of the keys. `data` names other images
    than the trial's own. They lie in the folder `path`, if they lie on disk.

    Returns:
        `image` [n, c, s, s] in 0..1, `visible` [n, v] and `queries` [n, q], places row by row, `weights`
        [n, q, 1 + v], the class first, which sum to 1; `side` [], patches along a side.
    """
    layers = [part for part in trial.objective.modules() if isinstance(part, CrossAttention)]
    if not layers:
        raise Lacking("its decoder has no cross-attention")
    caught: list[tuple[Tensor, Tensor]] = []
    split = trial.open(data, path).test
    seen = trial.images(split, spread(len(split), images))
    hook = layers[-1].register_forward_pre_hook(lambda part, given: caught.append(given))
    try:
        made = trial.masked(seen)
    finally:
        hook.remove()
    # the queries begin with the decoder's own class token, which is dropped
    weights = attended(layers[-1], *caught[-1])[:, 1:]
    order = made.view.masked.argsort(dim=1)
    chosen = order[:, spread(order.shape[1], queries).to(order.device)]
    rows = torch.arange(len(chosen), device=chosen.device)[:, None]
    return {
        "image": array(seen.pixels),
        "visible": array(made.view.visible),
        "queries": array(made.view.masked[rows, chosen]),
        "weights": weights[rows, chosen].cpu().numpy(),
        "side": array(torch.tensor(round(made.patches.shape[1] ** 0.5))),
    }


@torch.no_grad()
def attended(
    layer: CrossAttention, queries: Float[Tensor, "b m d"], context: Float[Tensor, "b v d"]
) -> Float[Tensor, "b m v"]:
    """The weights of a layer's attention, the mean over its heads: what its forward pass keeps to itself."""
    q = layer.q_proj(queries).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    k = layer.kv_proj(context).unflatten(-1, (2, layer.heads, -1)).permute(2, 0, 3, 1, 4)[0]
    found: Tensor = (q @ k.mT * q.shape[-1] ** -0.5).float().softmax(dim=-1).mean(dim=1)
    return found
