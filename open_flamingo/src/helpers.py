"""The trained blocks of Flamingo (Alayrac et al. 2022, arXiv:2204.14198): resampler and gated cross-attention.

Parameter names are those of the released OpenFlamingo checkpoints; do not rename them.
"""

# b batch, T images per sample, F frames, v visual tokens of one image, n latents, N images of a batch, m attending
# tokens, h heads, d width

from collections.abc import Iterable
from typing import cast

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from open_flamingo.src.attention import attend
from open_flamingo.src.media import AttendedMedia


def feed_forward(dim: int, mult: int = 4) -> nn.Sequential:
    """LayerNorm, then a bias-free MLP of width `dim * mult` with exact GELU."""
    inner = dim * mult
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, inner, bias=False),
        nn.GELU(),
        nn.Linear(inner, dim, bias=False),
    )


class PerceiverAttention(nn.Module):
    """Latents attend the media tokens and themselves (Alayrac et al. 2022, figure 5)."""

    def __init__(self, *, dim: int, dim_head: int = 64, heads: int = 8) -> None:
        super().__init__()
        inner = dim_head * heads
        self.heads = heads
        self.norm_media = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, media: Tensor, latents: Tensor) -> Tensor:
        """media (..., v, d) and latents (..., n, d) to an update of the latents (..., n, d)."""
        media, latents = self.norm_media(media), self.norm_latents(latents)
        q = rearrange(self.to_q(latents), "b T n (h d) -> (b T) h n d", h=self.heads)
        context = self.to_kv(torch.cat((media, latents), dim=-2))
        k, v = rearrange(context, "b T v (two h d) -> two (b T) h v d", two=2, h=self.heads)
        out = attend(q, k, v)
        return self.to_out(rearrange(out, "(b T) h n d -> b T n (h d)", b=latents.shape[0], T=latents.shape[1]))


class PerceiverResampler(nn.Module):
    """Any number of visual tokens per image to a fixed number of latents per image."""

    frame_embs: nn.Parameter | None
    media_time_embs: nn.Parameter | None

    def __init__(
        self,
        *,
        dim: int,
        depth: int = 6,
        dim_head: int = 64,
        heads: int = 8,
        num_latents: int = 64,
        max_num_media: int | None = None,
        max_num_frames: int | None = None,
        ff_mult: int = 4,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_latents, dim))
        self.frame_embs = nn.Parameter(torch.randn(max_num_frames, dim)) if max_num_frames else None
        self.media_time_embs = nn.Parameter(torch.randn(max_num_media, 1, dim)) if max_num_media else None
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim=dim, dim_head=dim_head, heads=heads), feed_forward(dim, ff_mult)])
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Visual tokens (b, T, F, v, d) to latents (b, T, n, d)."""
        b, T, frames, v, _ = x.shape
        if self.frame_embs is not None:
            x = x + repeat(self.frame_embs[:frames], "F d -> b T F v d", b=b, T=T, v=v)
        x = rearrange(x, "b T F v d -> b T (F v) d")
        if self.media_time_embs is not None:
            x = x + self.media_time_embs[:T]
        latents = repeat(self.latents, "n d -> b T n d", b=b, T=T)
        for attention, ff in cast("Iterable[tuple[PerceiverAttention, nn.Sequential]]", self.layers):
            latents = attention(x, latents) + latents
            latents = ff(latents) + latents
        return self.norm(latents)


OUTPUT_GAIN = 8.0
"""How much larger than PyTorch's default the output projection of cross-attention starts.

Language models carry residuals of an RMS of ten and more, and the mean over an image's latents is small: at the default,
opening a gate changes so little that a model from scratch first learns nothing (docs/performance.md).
"""


class MaskedCrossAttention(nn.Module):
    """Text tokens attend the latents of the images they belong to, and nothing else."""

    def __init__(self, *, dim: int, dim_visual: int, dim_head: int = 64, heads: int = 8) -> None:
        super().__init__()
        inner = dim_head * heads
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim_visual, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)
        self.to_out.weight.data.mul_(OUTPUT_GAIN)

    def keys_values(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (N, n, d) to keys and values, each (N, h, n, d_head)."""
        k, v = rearrange(self.to_kv(latents), "N n (two h d) -> two N h n d", two=2, h=self.heads)
        return k, v

    def forward(self, x: Tensor, media: AttendedMedia) -> Tensor:
        """The attending tokens (m, d) of a batch, in reading order, to their updates (m, d)."""
        k, v = media.keys_values(self)
        q = rearrange(self.to_q(self.norm(x)), "m (h d) -> m h d", h=self.heads)
        return self.to_out(rearrange(media.attend(q, k, v), "m h d -> m (h d)"))


class GatedCrossAttentionBlock(nn.Module):
    """`x + tanh(g) attn(x)`, then `x + tanh(g') ff(x)`: the identity while both gates are zero."""

    def __init__(self, *, dim: int, dim_visual: int, dim_head: int = 64, heads: int = 8, ff_mult: int = 4) -> None:
        super().__init__()
        self.attn = MaskedCrossAttention(dim=dim, dim_visual=dim_visual, dim_head=dim_head, heads=heads)
        self.attn_gate = nn.Parameter(torch.zeros(1))
        self.ff = feed_forward(dim, ff_mult)
        self.ff_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, media: AttendedMedia | None) -> Tensor:
        """Text (b, t, d) to text (b, t, d); a token without an image gets exactly zero from attention."""
        if media is not None:
            flat = rearrange(x, "b t d -> (b t) d")
            update = self.attn(flat[media.tokens], media) * self.attn_gate.tanh()
            x = flat.index_add(0, media.tokens, update.to(x.dtype)).view_as(x)
        return x + (self.ff(x) * self.ff_gate.tanh()).to(x.dtype)
