"""Names and paths to a Flamingo: tower, language model, tokenizer with special tokens, everything frozen but the new."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from open_flamingo.src import mosaic_gpt  # noqa: F401 - registers MPT-1B
from open_flamingo.src.flamingo import Flamingo
from open_flamingo.src.media import MediaAttention
from open_flamingo.src.mpt import use_sdpa
from open_flamingo.src.vision import create_vision_encoder, visual_width
from open_flamingo.src.weights import load_adapter

MEDIA_TOKEN = "<image>"
END_OF_CHUNK_TOKEN = "<|endofchunk|>"
PAD_TOKEN = "<PAD>"

V1_TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
"""LLaMA's own, which the tokenizer files of 2023 had wrong."""


def create_model_and_transforms(  # noqa: PLR0913 - the public call of OpenFlamingo, argument for argument
    clip_vision_encoder_path: str,
    clip_vision_encoder_pretrained: str,
    lang_encoder_path: str,
    tokenizer_path: str | None = None,
    cross_attn_every_n_layers: int = 1,
    use_local_files: bool = False,
    decoder_layers_attr_name: str | None = None,
    freeze_lm_embeddings: bool = False,
    cache_dir: str | None = None,
    *,
    media_attention: MediaAttention = "previous",
    lora_weights: str | None = None,
    quick_gelu: bool | None = None,
    lm_dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    load_weights: bool = True,
    **flamingo_kwargs: Any,
) -> tuple[Flamingo, Callable, PreTrainedTokenizerBase]:
    """A model, its image transform and its tokenizer.

    The resampler, the gated blocks and, unless frozen, the input embeddings require gradients; all else is frozen.
    `tokenizer_path` defaults to `lang_encoder_path`; the language model's weights are held in `lm_dtype`. `quick_gelu`
    and the two encoder arguments as in `create_vision_encoder`; `flamingo_kwargs` as in `Flamingo`. `media_attention`
    "next" is the v1 family (OpenFlamingo-9B v1, Clever Flamingo v1): its mask, LLaMA's token ids, an answer ends at the
    end of the sequence. `lora_weights` is a PEFT folder to put around the language model. Without `load_weights` tower
    and language model are random, from their configurations alone, also on the meta device. Raises ValueError for what
    cannot be found.
    """
    visual, image_processor = create_vision_encoder(
        clip_vision_encoder_path,
        clip_vision_encoder_pretrained,
        quick_gelu=quick_gelu,
        cache_dir=cache_dir,
        load_weights=load_weights,
    )
    hub = {"local_files_only": use_local_files, "cache_dir": cache_dir, "trust_remote_code": trust_remote_code}
    tokenizer = load_part(AutoTokenizer, tokenizer_path or lang_encoder_path, "tokenizer", hub)
    add_special_tokens(tokenizer)
    is_v1 = media_attention == "next"
    if is_v1:
        for name, token_id in V1_TOKEN_IDS.items():
            setattr(tokenizer, name, token_id)
    if load_weights:
        lang_encoder = load_part(AutoModelForCausalLM, lang_encoder_path, "language model", hub | {"dtype": lm_dtype})
    else:
        lm_config = load_part(AutoConfig, lang_encoder_path, "language model", hub)
        lang_encoder = AutoModelForCausalLM.from_config(lm_config, dtype=lm_dtype, trust_remote_code=trust_remote_code)
    use_sdpa(lang_encoder)
    # released checkpoints hold len(tokenizer) rows, also where the LM came with more (MPT-7B: 50432 to 50280)
    lang_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = Flamingo(
        visual,
        lang_encoder,
        tokenizer.convert_tokens_to_ids(END_OF_CHUNK_TOKEN),
        tokenizer.convert_tokens_to_ids(MEDIA_TOKEN),
        vis_dim=visual_width(visual),
        cross_attn_every_n_layers=cross_attn_every_n_layers,
        decoder_layers_attr_name=decoder_layers_attr_name,
        media_attention=media_attention,
        stop_token_id=tokenizer.eos_token_id if is_v1 else None,
        **flamingo_kwargs,
    )
    freeze(model, freeze_lm_embeddings=freeze_lm_embeddings)
    if lora_weights is not None:
        load_adapter(model, lora_weights)
    return model, image_processor, tokenizer


def add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Add `<|endofchunk|>` and `<image>`, in the order of the released checkpoints, then `<PAD>` if there is no pad."""
    tokenizer.add_special_tokens({"additional_special_tokens": [END_OF_CHUNK_TOKEN, MEDIA_TOKEN]})
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})


def freeze(model: Flamingo, *, freeze_lm_embeddings: bool) -> None:
    """Freeze everything, then unfreeze the resampler, the gated blocks and, unless asked not to, the input embeddings."""
    model.requires_grad_(False)
    trained: list[nn.Module] = [model.perceiver, *model.gated_cross_attn_layers]
    if not freeze_lm_embeddings:
        trained.append(model.lang_encoder.get_input_embeddings())  # type: ignore[operator]
    for module in trained:
        module.requires_grad_(True)


def load_part(auto: Any, path: str, what: str, hub: Mapping[str, Any] | None = None) -> Any:
    """A pretrained part, or a ValueError that says which path was wrong."""
    if Path(path).is_dir() and not any(Path(path).glob("*.json")):
        raise ValueError(f"{what} {path} is a folder without a configuration (config.json)")
    try:
        return auto.from_pretrained(path, **(hub or {}))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{what} {path!r} could not be loaded: give a folder or a name on the Hugging Face hub ({reason})"
        ) from error
