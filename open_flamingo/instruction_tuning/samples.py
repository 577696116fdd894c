"""What a run shows of itself: a sample's pictures and texts, and the model's own answer to it."""

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from open_flamingo.instruction_tuning.data.batches import Batch
from open_flamingo.instruction_tuning.parallel import is_sharded
from open_flamingo.instruction_tuning.precision import autocast
from open_flamingo.instruction_tuning.trainer import Trainer

ANSWER_TOKENS = 64
"""Longest answer that is generated while training."""


@dataclass
class Shown:
    """A sample as a reader sees it."""

    text: str
    pictures: Tensor
    """(N, 3, H, W), from 0 to 1."""


def show(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, batch: Batch, predictions: Tensor | None = None
) -> Shown | None:
    """The first sample of a batch: input, supervised text, likeliest tokens in its place if given, generated answer.

    None off the main rank, where a sharded model works along all the same.
    """
    if not takes_part(trainer):
        return None
    ids, attended = batch.input_ids[0], batch.attention_mask[0].bool()
    supervised = batch.supervised[0, 1:]
    count = int((ids == trainer.model.media_token_id).sum())
    lines = {
        "input": ids[attended],
        "supervised": ids[1:][supervised],
        "predicted": None if predictions is None else predictions[: int(supervised.sum())],
        "generated": first_answer(trainer, tokenizer, batch),
    }
    if not trainer.ranks.is_main:
        return None
    text = "\n".join(f"{what + ':':<12}{tokenizer.decode(x)}" for what, x in lines.items() if x is not None)
    return Shown(text, as_pictures(batch.images[:count], trainer.model.vision_encoder.preprocess_cfg))


def takes_part(trainer: Trainer) -> bool:
    """Whether this rank is needed for a sample to be shown: the main one, or any of a sharded model."""
    return trainer.ranks.is_main or is_sharded(trainer.model)


def first_answer(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, batch: Batch) -> Tensor:
    """The ids that the model generates, greedily, where the first answer of the first sample begins."""
    model, ids = trainer.model, batch.input_ids[0]
    prompt = ids[: int(batch.supervised[0].int().argmax()) or len(ids)]
    images = batch.images[: int((prompt == model.media_token_id).sum())]
    model.eval()
    try:
        with autocast(trainer.ranks.device, trainer.precision):
            text = model.generate(
                images,
                prompt[None],
                torch.ones_like(prompt)[None],
                max_new_tokens=ANSWER_TOKENS,
                do_sample=False,
                num_beams=1,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                synced_gpus=is_sharded(model),
            )
    finally:
        model.train()
    return text[0, len(prompt) :]


def as_pictures(images: Tensor, preprocessing: Any) -> Tensor:
    """Images as a tower takes them, (N, F, 3, H, W), as pictures (N, 3, H, W), from 0 to 1."""
    images = rearrange(images, "N F c H W -> (N F) c H W").float().cpu()
    mean, std = (torch.tensor(preprocessing[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (images * std + mean).clamp(0, 1)
