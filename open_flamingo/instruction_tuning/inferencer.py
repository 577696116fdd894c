"""A prompt and its images in, an answer out: one class for the commands, the API and evaluation."""

# b prompts, t tokens, N images, n latents, d width

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from instruction_dataset.dialogue import ASSISTANT, HUMAN
from open_flamingo.instruction_tuning.build import load_trained
from open_flamingo.instruction_tuning.config import Precision, TrainedConfig
from open_flamingo.instruction_tuning.data.conversation import TurnTokenizer
from open_flamingo.instruction_tuning.data.images import load_images
from open_flamingo.instruction_tuning.data.prompts import split_prompt
from open_flamingo.instruction_tuning.distributed import pick_device
from open_flamingo.instruction_tuning.generation import Answer, Prompt, Settings, decode, until_stop
from open_flamingo.instruction_tuning.precision import autocast, cast_frozen
from open_flamingo.instruction_tuning.prefixes import Prefixes, Token
from open_flamingo.instruction_tuning.watch import Hear, Limits, Listener, StopStrings, Watch
from open_flamingo.src.attention import use_attend
from open_flamingo.src.factory import MEDIA_TOKEN
from open_flamingo.src.lora import merge_lora

POSITIONS = re.compile(r"(embed_positions|wpe)$")
"""The names of tables of learnt positions."""


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
        compile: bool = False,
        conversations: int = 1,
        images_held: int = 256,
    ) -> None:
        """Held for requests to come: the KV caches of the latest `conversations`, the latents of the latest images.

        `compile` compiles the decoder layers.
        """
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
        if precision == "fp32":  # half precision would round small updates away
            merge_lora(self.model)
        cast_frozen(self.model, precision)
        self.model.to(self.device).eval()
        use_attend(self.model.lang_encoder)
        if compile:
            self.model.compile_layers()
        self.turns = TurnTokenizer(self.tokenizer, self.model.media_token_id, self.template)
        self.ends = [self.tokenizer.eos_token_id, self.model.eoc_token_id]
        # in the first version's texts an image also changes what stands before it
        self.prefixes = Prefixes(conversations if self.model.media_attention == "previous" else 0)
        self.images_held = images_held
        self._latents: OrderedDict[bytes, Tensor] = OrderedDict()
        self.positions = learned_positions(self.model.lang_encoder)

    @classmethod
    def from_pretrained(cls, path: str, **settings: Any) -> Self:
        """The model of a checkpoint of this project or of a folder written by `export`; `settings` as in `__init__`."""
        return cls(path, **settings)

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
        *,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> tuple[list[str], list[str]]:
        """The responses to one prompt or several, and the full texts they end.

        A prompt holds one `<image>` for each path in its list of images; `prompts.join_prompt` keeps one in a user's texts
        from being taken for an image. A response ends where the model goes on with a turn of its own, at `### Human:` or
        `response_split`, and at any string of `stop`. Equal seeds give equal responses; without one they follow
        `torch.manual_seed`. Raises ValueError where `<image>` and images do not agree in number, and for an image that
        cannot be read.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        paths: list[Any] = [images] if isinstance(prompt, str) else list(images) or [[] for _ in prompts]
        if len(prompts) != len(paths):
            raise ValueError(
                f"{len(prompts)} prompts were given with {len(paths)} lists of images: give one list for each"
            )
        settings = Settings(
            max_new_tokens=max_new_token,
            num_beams=num_beams,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            no_repeat_ngram_size=no_repeat_ngram_size,
            length_penalty=length_penalty,
            stop=(HUMAN.strip(), response_split, *stop),
        )
        asked = [self.encode(text, its_images) for text, its_images in zip(prompts, paths)]
        seeds = None if seed is None else [seed + i for i in range(len(asked))]
        responses = [answer.text for answer in self.answer(asked, settings, seeds)]
        return responses, [text + response for text, response in zip(prompts, responses)]

    def encode(self, prompt: str, images: Sequence[str | Path | Tensor] = ()) -> Prompt:
        """A prompt as ids. Raises ValueError where it does not hold one `<image>` for each image."""
        pieces = split_prompt(prompt)
        if len(pieces) - 1 != len(images):
            raise ValueError(f"the prompt holds {len(pieces) - 1} {MEDIA_TOKEN} for {len(images)} images: {prompt!r}")
        return Prompt(self.turns.prompt(pieces), images)

    def look(self, image: Image.Image) -> Tensor:
        """An image in RGB as the tower takes it (C, H, W), and as a prompt may hold it in place of its path."""
        return self.transform(image)

    def check(self, prompts: Sequence[Prompt], settings: Settings) -> None:
        """Raise ValueError for what this model cannot answer so."""
        longest = max(len(prompt.ids) for prompt in prompts)
        if self.positions is not None and longest + settings.max_new_tokens > self.positions:
            raise ValueError(
                f"a prompt of {longest} tokens with {settings.max_new_tokens} more to come does not fit into the"
                f" {self.positions} positions of this language model: ask for fewer new tokens, or less"
            )

    def answer(
        self,
        prompts: Sequence[Prompt],
        settings: Settings,
        seeds: Sequence[int] | None = None,
        *,
        hear: Mapping[int, Hear] | None = None,
        wanted: Callable[[int], bool] | None = None,
        finished: Callable[[int, Answer], None] | None = None,
    ) -> list[Answer]:
        """The answers to prompts, `settings.num_return_sequences` to each, one after another.

        Each image is encoded once, however often it comes up. `seeds` are those of the prompts, if answers are sampled; the
        further answers to a prompt have the seeds that follow its own. Answers are numbered as they are returned: `hear`
        gets the text of those that it names, piece by piece; `wanted` is asked after each token whether an answer is to go
        on; `finished` gets each as soon as it is done, all of its text heard. Beams cannot be listened to, and are finished
        together.
        """
        if not prompts:
            return []
        self.check(prompts, settings)
        if hear and settings.num_beams > 1:
            raise ValueError("an answer that beams search for is only known at its end: stream with num_beams 1")
        if seeds is None:
            seeds = torch.randint(2**31, (len(prompts),)).tolist()
        copies = range(settings.num_return_sequences)
        rows = [seed + i for seed in seeds for i in copies]
        limits = [prompt.max_new_tokens or settings.max_new_tokens for prompt in prompts for _ in copies]
        start = max(len(prompt.ids) for prompt in prompts)
        listener = Listener(self.tokenizer, settings.stop, start, hear or {})
        answers: dict[int, Answer] = {}

        def finish(number: int, ids: list[int]) -> None:
            answers[number] = answer = self._answer(ids, settings, limits[number])
            if number in listener.hear:
                listener.say(number, answer.text)
            if finished is not None:
                finished(number, answer)

        criteria: list[StoppingCriteria] = [
            StopStrings(self.tokenizer, settings.stop, start),
            Limits(limits, wanted, start),
            *([listener] if hear else []),
        ]
        if settings.num_beams == 1:
            criteria = [Watch(criteria, self.ends, start, finish)]
        with torch.inference_mode(), autocast(self.device, self.precision):
            new = self._generate(prompts, settings, rows, StoppingCriteriaList(criteria))[:, start:]
        for number, ids in enumerate(new.tolist()):
            if number not in answers:
                finish(number, ids)
        return [answers[number] for number in range(len(new))]

    def stream(
        self, prompt: str, images: Sequence[str | Path] = (), settings: Settings | None = None, seed: int | None = None
    ) -> Iterator[str]:
        """The answer to a prompt in pieces, each as soon as it is sure; closing the iterator ends the generation."""
        asked, pieces, is_closed = self.encode(prompt, images), SimpleQueue[str | None](), False
        seeds = None if seed is None else [seed]
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(
                lambda: self.answer(
                    [asked], settings or Settings(), seeds, hear={0: pieces.put}, wanted=lambda _: not is_closed
                )
            )
            work.add_done_callback(lambda _: pieces.put(None))
            try:
                while (piece := pieces.get()) is not None:
                    yield piece
            finally:
                is_closed = True
            work.result()

    def score(self, prompt: str, images: Sequence[str | Path], candidates: Sequence[str]) -> list[float]:
        """The log-likelihood of each candidate as the whole answer to a prompt: of its tokens and its end."""
        asked = self.encode(prompt, images)
        ids = [torch.tensor([*self.turns.encode(text), self.turns.eos], device=self.device) for text in candidates]
        self.check([asked], Settings(max_new_tokens=max(map(len, ids), default=1)))
        with torch.inference_mode(), autocast(self.device, self.precision):
            latents, _ = self._encode_images(asked.images)
            lang_x = torch.tensor([asked.ids], device=self.device)
            return self.model.score(None, lang_x, ids, latents=latents).tolist()

    def _generate(
        self, prompts: Sequence[Prompt], settings: Settings, seeds: Sequence[int], criteria: StoppingCriteriaList
    ) -> Tensor:
        """The ids of prompts, padded on the left, and of their answers, a seed for each (r, t)."""
        lang_x, attention_mask = self._pad_left([prompt.ids for prompt in prompts])
        latents, digests = self._encode_images([image for prompt in prompts for image in prompt.images])
        if settings.do_sample and not settings.is_seeded:
            torch.manual_seed(seeds[0])  # beams are drawn together
        text = self._text(prompts[0].ids, digests) if len(seeds) == 1 and settings.num_beams == 1 else None
        output = self.model.generate(
            None,
            lang_x,
            attention_mask,
            latents=latents,
            copies=settings.num_return_sequences if settings.is_seeded else 1,
            eos_token_id=self.ends,
            pad_token_id=self.tokenizer.pad_token_id,
            stopping_criteria=criteria,
            past_key_values=None if text is None else self.prefixes.take(text),
            return_dict_in_generate=True,
            **settings.arguments(seeds, (attention_mask == 0).sum(dim=1)),
        )
        if text is not None:
            self.prefixes.keep([*text, *output.sequences[0, len(text) :].tolist()], output.past_key_values)
        return output.sequences

    def _answer(self, ids: list[int], settings: Settings, limit: int) -> Answer:
        """The answer that ids hold, of which there may be at most `limit`."""
        ids, marks = ids[:limit], {*self.ends, self.tokenizer.pad_token_id}
        tokens = next((i + (end in self.ends) for i, end in enumerate(ids) if end in marks), len(ids))
        (text,) = decode(self.tokenizer, torch.tensor([ids]))
        has_ended = tokens < limit or ids[-1] in marks or any(stop in text for stop in settings.stop)
        return Answer(until_stop(text, settings.stop), tokens, not has_ended)

    def _text(self, ids: list[int], digests: Sequence[bytes]) -> list[Token]:
        """A prompt with its images in their places."""
        images = iter(digests)
        return [next(images) if token == self.model.media_token_id else token for token in ids]

    def _pad_left(self, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids (b, t), padded on the left, and the attention mask."""
        length = max(len(row) for row in ids)
        padding = [[self.tokenizer.pad_token_id] * (length - len(row)) for row in ids]
        lang_x = torch.tensor([pad + row for pad, row in zip(padding, ids)], device=self.device)
        mask = torch.tensor([[0] * len(pad) + [1] * len(row) for pad, row in zip(padding, ids)], device=self.device)
        return lang_x, mask

    def _encode_images(self, images: Sequence[str | Path | Tensor]) -> tuple[Tensor | None, list[bytes]]:
        """The latents (N, n, d) of images, if there are any, and a digest of each image as the tower sees it."""
        if not images:
            return None, []
        paths = [Path(image) for image in images if not isinstance(image, Tensor)]
        loaded = iter(load_images(paths, self.transform, None))
        pixels = [image if isinstance(image, Tensor) else next(loaded) for image in images]
        digests = [hashlib.blake2b(image.numpy().tobytes()).digest() for image in pixels]
        new = {digest: image for digest, image in zip(digests, pixels) if digest not in self._latents}
        if new:
            vision_x = torch.stack(list(new.values())).unsqueeze(1).to(self.device)
            self._latents.update(zip(new, self.model.encode(vision_x)))
        for digest in digests:
            self._latents.move_to_end(digest)
        latents = torch.stack([self._latents[digest] for digest in digests])
        while len(self._latents) > self.images_held:
            self._latents.popitem(last=False)
        return latents, digests


def learned_positions(lang_encoder: nn.Module) -> int | None:
    """How many positions a language model knows that has learnt a vector for each of them (OPT, GPT-2); None for others."""
    positions = getattr(lang_encoder.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[operator, union-attr]
    tables = [
        m.num_embeddings
        for name, m in lang_encoder.named_modules()
        if isinstance(m, nn.Embedding) and POSITIONS.search(name)
    ]
    return positions if tables else None
