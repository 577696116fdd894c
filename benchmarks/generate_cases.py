"""What benchmarks/generate.py compares: requests, and ours, Idefics and a bare language model to answer them."""

# b prompts, t tokens, T images of a prompt, C H W an image

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rivals import flamingo, idefics_config
from torch import Tensor, nn
from train_cases import END_ID, MEDIA_ID, SIZES, language_model
from transformers import IdeficsForVisionText2Text

from open_flamingo.instruction_tuning.config import Precision
from open_flamingo.instruction_tuning.precision import cast_frozen
from open_flamingo.src.attention import use_attend

TEXT = 64
"""Tokens of a prompt, without its images."""
TOKENS = 64
"""Tokens of an answer."""
FIRST_ID = 3
"""Below it are the padding and the marks of transformers' own configurations."""


class Case(NamedTuple):
    """A request."""

    prompts: int
    images: int
    """Of each prompt."""
    beams: int

    def __str__(self) -> str:
        beams = f", {self.beams} beams" if self.beams > 1 else ""
        return f"{_count(self.prompts, 'prompt')}, {_count(self.images, 'image')}{beams}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


WITH_BEAMS = ((1, 1), (8, 1), (1, 4))
"""Prompts and images that beams are searched for; greedy answers have all."""


def cases(prompts: Sequence[int], images: Sequence[int], beams: Sequence[int]) -> list[Case]:
    """The requests that were asked for."""
    every = [Case(b, images_of_each, k) for k in beams for b in prompts for images_of_each in images]
    return [case for case in every if case.beams == 1 or case[:2] in WITH_BEAMS]


class Contender(NamedTuple):
    """A model, and what its `generate` takes for a request."""

    model: Any
    inputs: Callable[[Case], dict[str, Any]]


def contenders(every: Sequence[int], precision: Precision) -> dict[str, Contender]:
    """All that answer, with random weights, ready in a precision."""
    found = {}
    for interval in every:
        found[f"ours, every {interval}"] = Contender(ours(interval, precision), our_inputs)
        found[f"Idefics, every {interval}"] = Contender(idefics(interval, precision), idefics_inputs)
    return found | {"bare LM": Contender(bare(precision), text_inputs)}


def ours(every: int, precision: Precision) -> nn.Module:
    """Our model as the Inferencer has it."""
    torch.manual_seed(0)
    model = flamingo(every)
    use_attend(model.lang_encoder)
    return ready(model, model.lang_encoder, precision)


def idefics(every: int, precision: Precision) -> nn.Module:
    """Idefics, with the KV cache and the fused attention that are its default."""
    torch.manual_seed(0)
    model = IdeficsForVisionText2Text._from_config(idefics_config(every), attn_implementation="sdpa")
    return ready(model, model, precision)


def bare(precision: Precision) -> nn.Module:
    """The language model alone."""
    torch.manual_seed(0)
    model = language_model()
    return ready(model, model, precision)


def ready(model: nn.Module, generator: Any, precision: Precision) -> nn.Module:
    """The model in a precision, and its part that generates never at an end of its own."""
    cast_frozen(model.requires_grad_(False), precision)
    generator.generation_config.eos_token_id = None
    return model.eval()


def our_inputs(case: Case) -> dict[str, Any]:
    """Prompts and real images."""
    ids, images = request(case)
    return {
        "vision_x": images.flatten(0, 1).unsqueeze(1) if case.images else None,
        "lang_x": ids,
        "attention_mask": torch.ones_like(ids),
    }


def idefics_inputs(case: Case) -> dict[str, Any]:
    """Prompts and real images; a text without any comes with a black one that no token sees, as from Idefics' processor."""
    ids, images = request(case)
    slots = max(case.images, 1)
    time = (ids == MEDIA_ID).cumsum(dim=1)
    return text_inputs(case) | {
        "pixel_values": images if case.images else images.new_zeros(case.prompts, 1, *images.shape[2:]),
        "image_attention_mask": F.one_hot(time, slots + 1)[..., 1:],
    }


def text_inputs(case: Case) -> dict[str, Any]:
    """Prompts in which an image is a token like any other."""
    ids, _ = request(case)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def request(case: Case) -> tuple[Tensor, Tensor]:
    """Random ids (b, t) with the images at equal distances, from the first token on, and the images (b, T, C, H, W)."""
    torch.manual_seed(0)
    length = TEXT + case.images
    ids = torch.randint(FIRST_ID, END_ID, (case.prompts, length))
    if case.images:
        ids[:, :: length // case.images] = MEDIA_ID
    return ids, torch.randn(case.prompts, case.images, 3, SIZES.pixels, SIZES.pixels)


def weights_ratio(ours: Contender, bare: Contender) -> float:
    """Bytes of weights that a token reads in ours, over those that it reads in the bare language model."""
    table = bare.model.get_input_embeddings().weight
    lm = sum(p.nbytes for p in bare.model.parameters() if p is not table)
    blocks = [named for block in ours.model.gated_cross_attn_layers for named in block.named_parameters()]
    return 1 + sum(p.nbytes for name, p in blocks if "to_kv" not in name) / lm
