"""Scaled dot-product attention by the kernel that is fastest where it runs.

That is PyTorch's fused one, but on a CPU in half precision plain matrix products, unless the text is long
(docs/performance.md).
"""

# b samples, h heads, q queries, k keys, d width of a head

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

LONG = 1024
"""Keys from which on the fused kernel is as fast on a CPU as well, and needs less memory."""
QUERY_BLOCK = 128
"""Queries attended at once: in a causal text they see no key after the last of them, and scores stay in the cache."""

NAME = "flamingo_cpu"
"""Of `attend` among the attention functions of transformers."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Queries (b, h, q, d), keys and values (b, h, k, d) to outputs (b, h, q, d).

    `mask` (b, h, q, k), or what broadcasts to it, is added to the scores, or is true where a key is seen. Causal texts have
    as many queries as keys.
    """
    kernel = plain_attention if _is_faster_plain(q, k) else F.scaled_dot_product_attention
    return kernel(q, k, v, mask, dropout, is_causal, scale=scale)


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """`attend` by matrix products in the type of the queries, for a block of them at a time."""
    queries, keys = q.shape[-2], k.shape[-2]
    lowest = torch.finfo(q.dtype).min  # finite: a row of padding sees nothing at all
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], queries, keys)
    blocks = []
    with torch.autocast(q.device.type, enabled=False):  # it would have the softmax, the larger half, in fp32
        q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
        for start in range(0, queries, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, queries)
            seen = end if is_causal else keys
            scores = q[..., start:end, :] @ k[..., :seen, :].transpose(-1, -2)
            if is_causal:
                later = torch.ones(end - start, seen, dtype=torch.bool, device=q.device).triu_(start + 1)
                scores = scores.masked_fill_(later, lowest)
            if mask is not None:
                part = mask[..., start:end, :seen]
                scores = scores.masked_fill_(~part, lowest) if part.dtype == torch.bool else scores + part
            blocks.append(F.dropout(scores.softmax(-1), dropout) @ v[..., :seen, :])
    return torch.cat(blocks, dim=-2)


def use_attend(lang_encoder: nn.Module) -> None:
    """Attend whole texts with `attend` wherever a model of transformers uses the fused kernel, in place."""
    model: Any = lang_encoder
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def _of_transformers(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """What a layer of transformers calls; returns (b, q, h, d)."""
    is_usual = all(kwargs.get(name) is None for name in ("position_bias", "softcap"))
    if query.shape[2] != key.shape[2] or not is_usual or not _is_faster_plain(query, key):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    is_causal = kwargs.get("is_causal")
    groups = query.shape[1] // key.shape[1]
    out = plain_attention(
        query,
        repeat_kv(key, groups),
        repeat_kv(value, groups),
        attention_mask,
        kwargs.get("dropout", 0.0),
        attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal),
        kwargs.get("scaling"),
    )
    return out.transpose(1, 2).contiguous(), None


def _is_faster_plain(q: Tensor, k: Tensor) -> bool:
    return q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16) and k.shape[-2] < LONG


AttentionInterface.register(NAME, _of_transformers)
AttentionMaskInterface.register(NAME, sdpa_mask)
