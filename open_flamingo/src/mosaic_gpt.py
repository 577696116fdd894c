"""MPT-1B (`model_type` "mosaic_gpt"), for which transformers has no class: MPT with norms of its queries and keys.

Importing this module registers the family, so that AutoConfig and AutoModelForCausalLM load the released folders with it
and never run the code inside them. Parameter names are those of the released weights; do not rename them.
"""

# b samples, t tokens of a run, w width of the model, h heads, d width of a head, k keys

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from open_flamingo.src.alibi import SharedMask
from open_flamingo.src.attention import attend

NORM_EPS = 1e-5
ONLY_KNOWN = {
    "alibi": True,
    "prefix_lm": False,
    "attn_uses_sequence_id": False,
    "logit_scale": None,
    "embedding_fraction": 1,
    "tie_word_embeddings": True,
}
"""Settings of the family that change what it computes, and that no released model sets otherwise."""


class MosaicGPTConfig(PreTrainedConfig):
    """The settings of `config.json` that the model reads, with the values of MPT-1B; further ones are kept."""

    model_type = "mosaic_gpt"
    attribute_map = {  # noqa: RUF012 - transformers declares it so
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "max_seq_len",
        "initializer_range": "init_std",
    }

    d_model: int = 2048
    n_heads: int = 16
    n_layers: int = 24
    mlp_ratio: int = 4
    max_seq_len: int = 2048
    vocab_size: int = 50432
    attn_pdrop: float = 0.0
    resid_pdrop: float = 0.0
    emb_pdrop: float = 0.0
    attn_qk_ln: bool = True
    attn_clip_qkv: float | None = None
    softmax_scale: float | None = None
    prefix_lm: bool = False
    attn_uses_sequence_id: bool = False
    alibi: bool = True
    alibi_bias_max: float = 8
    logit_scale: float | str | None = None
    embedding_fraction: float = 1.0
    no_bias: bool = True
    qk_ln_bias: bool | None = None
    """Ours: biases in the norms of queries and keys; None: where all other modules have them."""
    init_std: float = 0.02
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None


class MosaicGPTAttention(nn.Module):
    """Causal attention with ALiBi; whole queries and keys are normalized before they are split into heads."""

    def __init__(self, config: MosaicGPTConfig, layer_idx: int) -> None:
        super().__init__()
        width, bias = config.d_model, not config.no_bias
        qk_bias = bias if config.qk_ln_bias is None else config.qk_ln_bias
        self.layer_idx = layer_idx
        self.heads = config.n_heads
        self.clip = config.attn_clip_qkv
        self.scale = config.softmax_scale
        self.dropout = config.attn_pdrop
        self.Wqkv = nn.Linear(width, 3 * width, bias=bias)
        self.q_ln = nn.LayerNorm(width, eps=NORM_EPS, bias=qk_bias) if config.attn_qk_ln else nn.Identity()
        self.k_ln = nn.LayerNorm(width, eps=NORM_EPS, bias=qk_bias) if config.attn_qk_ln else nn.Identity()
        self.out_proj = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor, shared: SharedMask, unseen: Tensor, past_key_values: Cache | None) -> Tensor:
        """Hidden states (b, t, w) to their update, where `unseen` (b, 1, t, k) is true for keys out of sight."""
        qkv = self.Wqkv(x)
        if self.clip is not None:
            qkv = qkv.clamp(-self.clip, self.clip)
        q, k, v = qkv.chunk(3, dim=-1)
        # autocast may leave the norms in fp32: the kernel would then copy the mask to half precision in every layer
        q, k = self.q_ln(q).to(v.dtype), self.k_ln(k).to(v.dtype)
        q, k, v = (rearrange(y, "b t (h d) -> b h t d", h=self.heads) for y in (q, k, v))
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        dropout = self.dropout if self.training else 0.0
        mask = shared.get(unseen, q.dtype)
        out = attend(q, k, v, mask, dropout=dropout, scale=self.scale)
        return self.out_proj(rearrange(out, "b h t d -> b t (h d)"))


class MosaicGPTMLP(nn.Module):
    """Two layers with exact GELU between them."""

    def __init__(self, config: MosaicGPTConfig) -> None:
        super().__init__()
        inner = config.mlp_ratio * config.d_model
        self.mlp_up = nn.Linear(config.d_model, inner, bias=not config.no_bias)
        self.mlp_down = nn.Linear(inner, config.d_model, bias=not config.no_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states (b, t, w) to their update."""
        return self.mlp_down(F.gelu(self.mlp_up(x)))


class MosaicGPTBlock(GradientCheckpointingLayer):
    """A decoder layer: attention, then the MLP, each after a norm and added to what came in."""

    def __init__(self, config: MosaicGPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.d_model, eps=NORM_EPS, bias=not config.no_bias)
        self.attn = MosaicGPTAttention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.d_model, eps=NORM_EPS, bias=not config.no_bias)
        self.mlp = MosaicGPTMLP(config)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self, x: Tensor, shared: SharedMask, unseen: Tensor, past_key_values: Cache | None = None, **_kwargs: Any
    ) -> Tensor:
        """Hidden states (b, t, w) through the layer; the other arguments as in the attention."""
        x = x + self.dropout(self.attn(self.ln_1(x), shared, unseen, past_key_values))
        return x + self.dropout(self.mlp(self.ln_2(x)))


class MosaicGPTPreTrainedModel(PreTrainedModel):
    """What transformers has to know of the family."""

    config_class = MosaicGPTConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _input_embed_layer = "wte"
    _no_split_modules = ["MosaicGPTBlock"]  # noqa: RUF012 - transformers declares it so
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012 - transformers declares it so
    _can_record_outputs = {"hidden_states": MosaicGPTBlock}  # noqa: RUF012 - transformers declares it so


class MosaicGPTModel(MosaicGPTPreTrainedModel):
    """The stack of decoder layers between the embedding and the last norm."""

    def __init__(self, config: MosaicGPTConfig) -> None:
        super().__init__(config)
        refuse_unknown_settings(config)
        self.gradient_checkpointing = False
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.emb_pdrop)
        self.blocks = nn.ModuleList(MosaicGPTBlock(config, i) for i in range(config.n_layers))
        self.ln_f = nn.LayerNorm(config.d_model, eps=NORM_EPS, bias=not config.no_bias)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **_kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Ids (b, t), or their embeddings (b, t, w), to hidden states (b, t, w); arguments as elsewhere in transformers."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.wte(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        shared = SharedMask(self.config.n_heads, self.config.alibi_bias_max)
        unseen = self._unseen(inputs_embeds, attention_mask, past_key_values)
        x = self.dropout(inputs_embeds)
        for block in self.blocks:
            x = block(x, shared=shared, unseen=unseen, past_key_values=past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(x), past_key_values=past_key_values)

    def _unseen(self, x: Tensor, attention_mask: Tensor | None, past_key_values: Cache | None) -> Tensor:
        """True where a key is after its query, or padding: (b, 1, t, k)."""
        mask: Any = create_causal_mask(self.config, x, attention_mask, past_key_values, allow_is_causal_skip=False)
        # of the two masks that transformers makes, one is true where a key is seen, the other is zero there
        return ~mask if mask.dtype == torch.bool else mask != 0


class MosaicGPTForCausalLM(MosaicGPTPreTrainedModel, GenerationMixin):
    """The language model, whose output head is its embedding."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012 - transformers declares it so

    def __init__(self, config: MosaicGPTConfig) -> None:
        super().__init__(config)
        self.transformer = MosaicGPTModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As elsewhere in transformers, but weights with `q_ln.bias` load, though their config says they have no biases."""
        load: Any = partial(super().from_pretrained, *args, output_loading_info=True, **kwargs)
        model, info = load()
        if any(name.endswith(("q_ln.bias", "k_ln.bias")) for name in info["unexpected_keys"]):
            model.config.qk_ln_bias = True
            model, info = load(config=model.config)
        return (model, info) if output_loading_info else model

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Ids (b, t) to logits (b, t, vocabulary), and to the loss of predicting `labels` (b, t) where they are given."""
        outputs = self.transformer(
            input_ids=input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
        )


def refuse_unknown_settings(config: MosaicGPTConfig) -> None:
    """Raise ValueError for settings that would change what the model computes, and that it does not have."""
    settings = {name: getattr(config, name) for name in ONLY_KNOWN}
    wrong = [f"{name}={value!r}" for name, value in settings.items() if value != ONLY_KNOWN[name]]
    if wrong:
        known = ", ".join(f"{name}={value!r}" for name, value in ONLY_KNOWN.items())
        raise ValueError(f"a mosaic_gpt model with {', '.join(wrong)} is not supported, only one with {known}")
    if config.d_model % config.n_heads:
        raise ValueError(f"d_model={config.d_model} cannot be split into n_heads={config.n_heads} heads")


AutoConfig.register("mosaic_gpt", MosaicGPTConfig, exist_ok=True)
AutoModelForCausalLM.register(MosaicGPTConfig, MosaicGPTForCausalLM, exist_ok=True)
