"""MPT of transformers with PyTorch's fused attention: the library itself computes and keeps every attention matrix."""

# b samples, t tokens of a run, h heads, d width of a head, k keys

from typing import Any

from einops import rearrange
from torch import Tensor, nn
from transformers import Cache
from transformers.models.mpt.modeling_mpt import MptAttention, MptModel

from open_flamingo.src.alibi import SharedMask
from open_flamingo.src.attention import attend


class FusedMptAttention(MptAttention):
    """MPT's attention, without its matrix of weights as a second output."""

    layer_idx: int

    def forward(
        self,
        hidden_states: Tensor,
        position_bias: Any,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        **_kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Hidden states (b, t, h d) to their update; `attention_mask` (b, 1, t, k) is true where a key is not seen."""
        qkv = self.Wqkv(hidden_states)
        if self.clip_qkv:
            qkv = qkv.clamp(-self.clip_qkv, self.clip_qkv)
        q, k, v = rearrange(qkv, "b t (three h d) -> three b h t d", three=3, h=self.n_heads)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        mask = position_bias.get(attention_mask, q.dtype)
        dropout = self.attn_dropout_p if self.training else 0.0
        out = attend(q, k, v, mask, dropout=dropout, scale=self.softmax_scale)
        return self.out_proj(rearrange(out, "b h t d -> b t (h d)")), None


class FusedMptModel(MptModel):
    """MPT's stack of decoder layers, which share one additive mask."""

    def build_mpt_alibi_tensor(self, num_heads: int, *_args: Any, **_kwargs: Any) -> SharedMask:
        """What the stack, once per run, hands to every layer as its bias.

        Unlike the library's, it follows `alibi_bias_max`, and texts may be longer than `max_seq_len`.
        """
        attention: Any = self.config.attn_config
        return SharedMask(num_heads, attention.alibi_bias_max)


def use_sdpa(lang_encoder: nn.Module) -> None:
    """Attend with the fused kernel wherever `lang_encoder` is an MPT, in place; any other model stays as it is.

    Attention weights (`output_attentions`) are None from then on.
    """
    for stack in [module for module in lang_encoder.modules() if type(module) is MptModel]:
        # the two classes have no state of their own, so that names, hooks and adapters of the modules stay as they are
        stack.__class__ = FusedMptModel
        for module in stack.modules():
            if type(module) is MptAttention:
                module.__class__ = FusedMptAttention
