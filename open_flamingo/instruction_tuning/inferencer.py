"""A prompt and its images in, an answer out: one class for the commands, the API and evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from open_flamingo.instruction_tuning.build import load_trained
from open_flamingo.instruction_tuning.config import Precision, TrainedConfig
from open_flamingo.instruction_tuning.data.conversation import TurnTokenizer
from open_flamingo.instruction_tuning.data.images import load_image
from open_flamingo.instruction_tuning.data.prompts import ASSISTANT, HUMAN, split_prompt
from open_flamingo.instruction_tuning.distributed import pick_device
from open_flamingo.instruction_tuning.precision import autocast, cast_frozen
from open_flamingo.src.factory import MEDIA_TOKEN


class Inferencer:
    """A model that answers prompts about images.

    A checkpoint of this project is enough: `Inferencer("runs/x/checkpoint_0.pt")` rebuilds the model it was trained
    with, and so does a folder written by `export`. For other checkpoints name the parts, with a block every 4 layers
    unless said otherwise; LoRA is found in the file. What is named overrides what the checkpoint says.
    """

    def __init__(  # noqa: PLR0913 - the parts of a model, each with a name of its own
        self,
        checkpoint_paths: str | None = None,
        lm_path: str | None = None,
        tuning_config: str | None = None,
        clip_vision_encoder_path: str | None = None,
        clip_vision_encoder_pretrained: str | None = None,
        cross_attn_every_n_layers: int | None = None,
        v1: bool = False,
        *,
        tokenizer_path: str | None = None,
        quick_gelu: bool | None = None,
        template: str | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "fp32",
    ) -> None:
        trained = load_trained(
            TrainedConfig(
                checkpoint_paths=checkpoint_paths,
                lm_path=lm_path,
                tokenizer_path=tokenizer_path,
                vision_encoder_path=clip_vision_encoder_path,
                vision_encoder_pretrained=clip_vision_encoder_pretrained,
                quick_gelu=quick_gelu,
                tuning_config=tuning_config,
                cross_attn_every_n_layers=cross_attn_every_n_layers,
                v1=v1,
                precision=precision,
            )
        )
        self.model, self.transform, self.tokenizer = trained.model, trained.image_processor, trained.tokenizer
        self.template = template or trained.template
        self.precision = precision
        self.device = torch.device(device) if device else pick_device()
        cast_frozen(self.model, precision)
        self.model.to(self.device)
        self.turns = TurnTokenizer(self.tokenizer, self.model.media_token_id, self.template)

    def __call__(  # noqa: PLR0913 - the generation settings that requests carry
        self,
        prompt: str | Sequence[str],
        images: Sequence[str] | Sequence[Sequence[str]] = (),
        max_new_token: int = 1024,
        num_beams: int = 3,
        temperature: float = 1.0,
        top_k: int = 20,
        top_p: float = 0.9,
        do_sample: bool = True,
        length_penalty: float = 1.0,
        no_repeat_ngram_size: int = 3,
        response_split: str = ASSISTANT.strip(),
    ) -> tuple[list[str], list[str]]:
        """The responses to one prompt or several, and the full texts they end.

        A prompt holds one `<image>` for each path in its list of images; `prompts.escape` keeps one in a user's text from
        being taken for an image. A response ends where the model goes on with a
        turn of its own: at `### Human:` or `response_split`. Raises ValueError where `<image>` and images do not agree
        in number, and for an image that cannot be read.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        paths: list[Any] = [images] if isinstance(prompt, str) else list(images) or [[] for _ in prompts]
        responses = self.answer(
            [self._encode(text, its_images) for text, its_images in zip(prompts, paths, strict=True)],
            [path for its_images in paths for path in its_images],
            max_new_tokens=max_new_token,
            num_beams=num_beams,
            length_penalty=length_penalty if num_beams > 1 else None,
            no_repeat_ngram_size=no_repeat_ngram_size,
            do_sample=do_sample,
            **({"temperature": temperature, "top_k": top_k, "top_p": top_p} if do_sample else {}),
        )
        responses = [response.split(response_split)[0].strip() for response in responses]
        return responses, [text + response for text, response in zip(prompts, responses)]

    def answer(self, prompt_ids: list[list[int]], images: Sequence[str | Path], **generation: Any) -> list[str]:
        """The responses to prompts given as ids; `images` are those of all prompts, in reading order."""
        lang_x, attention_mask = self._pad_left(prompt_ids)
        with autocast(self.device, self.precision):
            output = self.model.generate(
                self._load(images),
                lang_x,
                attention_mask,
                eos_token_id=[self.tokenizer.eos_token_id, self.model.eoc_token_id],
                pad_token_id=self.tokenizer.pad_token_id,
                **generation,
            )
        texts = self.tokenizer.batch_decode(output[:, lang_x.shape[1] :], skip_special_tokens=True)
        return [text.split(HUMAN.strip())[0].strip() for text in texts]

    def _encode(self, prompt: str, images: Sequence[str]) -> list[int]:
        pieces = split_prompt(prompt)
        if len(pieces) - 1 != len(images):
            raise ValueError(f"the prompt holds {len(pieces) - 1} {MEDIA_TOKEN} for {len(images)} images: {prompt!r}")
        return self.turns.prompt(pieces)

    def _pad_left(self, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids (b, t), padded on the left, and the attention mask."""
        length = max(len(row) for row in ids)
        padding = [[self.tokenizer.pad_token_id] * (length - len(row)) for row in ids]
        lang_x = torch.tensor([pad + row for pad, row in zip(padding, ids)], device=self.device)
        mask = torch.tensor([[0] * len(pad) + [1] * len(row) for pad, row in zip(padding, ids)], device=self.device)
        return lang_x, mask

    def _load(self, paths: Sequence[str | Path]) -> Tensor | None:
        """Images (N, 1, C, H, W), or None."""
        if not paths:
            return None
        return torch.stack([load_image(Path(path), self.transform) for path in paths]).unsqueeze(1).to(self.device)
