"""How the masked latents are predicted: attention of the queries, visual cues.

Latent MIM (arXiv 2407.15837), section on the decoder. A decoder is called with (context, view): the
encoder's projected latents [images, 1 + visible, latent_width], class latent first, and the view that says
where they lie. It gives one prediction for each masked patch, [images, masked, out_width]. Its settings
are the keys of the config's section `decoder` that it reads.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lmim.encoder import LayerNorm, Positions, View, take
from lmim.variants import Positive, PositiveInt


def visual_cues(
    latents: Float[Tensor, "b v d"], queries: Float[Tensor, "b m d"], keys: Float[Tensor, "b v d"]
) -> Float[Tensor, "b m d"]:
    """The visible latents averaged for each query by the closeness of their position codes; no parameters.

    cue(q) = sum_k softmax_k(pe(q) . pe(k) / sqrt(d)) z_k, which is attention with positions as queries
    and keys.
    """
    return F.scaled_dot_product_attention(queries, keys, latents)


class CrossAttention(nn.Module):
    """Multi-head attention of queries to a context of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.kv_proj = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, queries: Float[Tensor, "b m d"], context: Float[Tensor, "b v d"]
    ) -> Float[Tensor, "b m d"]:
        q = self.q_proj(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv_proj(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return out


class CrossBlock(nn.Module):
    """Self-attention among the queries, cross-attention to the context, MLP; pre-norm throughout."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.self_attn = Attention(width, heads, qkv_bias=True)
        self.norm2q = LayerNorm(width)
        self.norm2kv = LayerNorm(width)
        self.cross_attn = CrossAttention(width, heads)
        self.norm3 = LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Float[Tensor, "b m d"], context: Float[Tensor, "b v d"]) -> Float[Tensor, "b m d"]:
        x = x + self.self_attn(self.norm1(x))
        x = x + self.cross_attn(self.norm2q(x), self.norm2kv(context))
        out: Tensor = x + self.mlp(self.norm3(x))
        return out


class Decoder(nn.Module):
    """What both decoders share: embedded context, queries with positions and cues, the way back.

    With `cues` a query starts from the visible latents around it. There are `depth` blocks. A token
    has `width` channels. Each block's attention has `heads` heads. Its MLP is `mlp_ratio` times as wide as a
    token.
    """

    positions: Tensor
    class_token = False
    """Whether the queries have one of their own."""

    def __init__(
        self,
        latent_width: int,
        positions: Positions,
        out_width: int,
        *,
        cues: bool = True,
        width: PositiveInt = 64,
        depth: PositiveInt = 2,
        heads: PositiveInt = 4,
        mlp_ratio: Positive = 4.0,
    ) -> None:
        super().__init__()
        self.cues = cues
        self.embed = nn.Linear(latent_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", positions(width), persistent=False)
        self.norm = LayerNorm(width)
        self.head = nn.Linear(width, out_width)
        if self.class_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(self.block(width, heads, mlp_ratio) for _ in range(depth))

    def block(self, width: int, heads: int, mlp_ratio: float) -> nn.Module:
        """One layer."""
        raise NotImplementedError

    def queries_and_context(
        self, latents: Float[Tensor, "b t e"], view: View
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b t d"]]:
        """Queries for the masked patches; the embedded context, positions added except to the class."""
        embedded = self.embed(latents)
        at_masked, at_visible = self.at(view.masked), self.at(view.visible)
        queries = self.mask_token + at_masked
        if self.cues:
            queries = queries + visual_cues(embedded[:, 1:], at_masked.to(embedded), at_visible.to(embedded))
        return queries, torch.cat([embedded[:, :1], embedded[:, 1:] + at_visible], dim=1)

    def at(self, indices: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
        """Position codes of the patches that `indices` name."""
        return take(self.positions.expand(len(indices), -1, -1), indices)


class CrossAttentionDecoder(Decoder):
    """The method's own: queries attend to each other and then to the visible latents."""

    class_token = True

    def block(self, width: int, heads: int, mlp_ratio: float) -> nn.Module:
        """Self-attention, then cross-attention to the context."""
        return CrossBlock(width, heads, mlp_ratio)

    def forward(self, latents: Float[Tensor, "b t e"], view: View) -> Float[Tensor, "b m o"]:
        queries, context = self.queries_and_context(latents, view)
        x = torch.cat([self.cls_token.expand(len(queries), -1, -1).to(queries), queries], dim=1)
        for block in self.blocks:
            x = block(x, context)
        prediction: Tensor = self.head(self.norm(x[:, 1:]))
        return prediction


class SelfAttentionDecoder(Decoder):
    """MAE's: visible latents and queries go through plain blocks side by side."""

    def block(self, width: int, heads: int, mlp_ratio: float) -> nn.Module:
        """Self-attention over context and queries alike."""
        return Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=LayerNorm)

    def forward(self, latents: Float[Tensor, "b t e"], view: View) -> Float[Tensor, "b m o"]:
        x = self.tokens(latents, view)
        prediction: Tensor = self.head(self.norm(x[:, latents.shape[1] :]))
        return prediction

    def everywhere(self, latents: Float[Tensor, "b t e"], view: View) -> Float[Tensor, "b n o"]:
        """What is made of the visible patches, and of the masked ones after them."""
        found: Tensor = self.head(self.norm(self.tokens(latents, view)[:, 1:]))
        return found

    def tokens(self, latents: Float[Tensor, "b t e"], view: View) -> Float[Tensor, "b k d"]:
        """The last block's tokens: class, visible, masked."""
        queries, context = self.queries_and_context(latents, view)
        x = torch.cat([context, queries], dim=1)
        for block in self.blocks:
            x = block(x)
        return x


DECODERS: dict[str, type[Decoder]] = {
    "cross_attention": CrossAttentionDecoder,
    "self_attention": SelfAttentionDecoder,
}
