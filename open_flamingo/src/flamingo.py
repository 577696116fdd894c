"""Flamingo: images and interleaved text in, a causal language model's output out."""

# b batch, T images per sample, N real images of the batch, F frames, v visual tokens, n latents, t text tokens, d width

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor, LogitsProcessorList

from open_flamingo.src.flamingo_lm import FlamingoLayer, inject
from open_flamingo.src.helpers import GatedCrossAttentionBlock, PerceiverResampler
from open_flamingo.src.loss import SupervisedLoss, loss_of_logits, supervised_loss
from open_flamingo.src.media import ImageLatents, Media, MediaAttention, conditioned
from open_flamingo.src.trained_rows import TrainedRows
from open_flamingo.src.vision import visual_tokens

SCORED_AT_ONCE = 16
"""Candidates whose log-likelihoods are computed together."""


class Never(LogitsProcessor):
    """Keeps one token from being generated; transformers' own `suppress_tokens` compares with the whole vocabulary."""

    def __init__(self, token_id: int) -> None:
        self.token_id = token_id

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (r, V) without the token's."""
        scores = scores.clone()
        scores[:, self.token_id] = -torch.inf
        return scores


class Flamingo(nn.Module):
    """A frozen vision tower, a resampler, and a language model with gated cross-attention (arXiv:2204.14198)."""

    def __init__(  # noqa: PLR0913 - the parts of the model in upstream's order, then its sizes
        self,
        vision_encoder: nn.Module,
        lang_encoder: nn.Module,
        eoc_token_id: int,
        media_token_id: int,
        vis_dim: int,
        cross_attn_every_n_layers: int = 1,
        *,
        decoder_layers_attr_name: str | None = None,
        only_attend_immediate_media: bool = True,
        media_attention: MediaAttention = "previous",
        stop_token_id: int | None = None,
        resampler_depth: int = 6,
        resampler_latents: int = 64,
    ) -> None:
        """Generation stops at `stop_token_id`, by default `eoc_token_id`."""
        super().__init__()
        self.eoc_token_id = eoc_token_id
        self.media_token_id = media_token_id
        self.stop_token_id = eoc_token_id if stop_token_id is None else stop_token_id
        self.only_attend_immediate_media = only_attend_immediate_media
        self.media_attention = media_attention
        self.vision_encoder = vision_encoder
        self.perceiver = PerceiverResampler(dim=vis_dim, depth=resampler_depth, num_latents=resampler_latents)
        inject(lang_encoder, vis_dim=vis_dim, every=cross_attn_every_n_layers, attr_name=decoder_layers_attr_name)
        self.lang_encoder = lang_encoder
        self.trained_rows: TrainedRows | None = None
        self._cached_media: Media | None = None
        self._ends_in_its_head: bool | None = None

    @property
    def gated_cross_attn_layers(self) -> list[GatedCrossAttentionBlock]:
        """The gated cross-attention blocks, from the bottom up: a view, not a second registration."""
        layers = [m for m in self.lang_encoder.modules() if isinstance(m, FlamingoLayer)]
        return [m.gated_cross_attn_layer for m in layers if m.gated_cross_attn_layer is not None]

    def forward(
        self,
        vision_x: Tensor | None,
        lang_x: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        clear_conditioned_layers: bool = True,
        past_key_values: Any = None,
        use_cache: bool = False,
        supervised: Tensor | None = None,
    ) -> Any:
        """The language model's output for `lang_x` (b, t) and its images.

        `vision_x` holds the images of each sample, (b, T, F, C, H, W) with unused slots at the end, or only the real
        ones, (N, F, C, H, W), in reading order; None for text alone or after `cache_media`. Sample i has as many images
        as `lang_x[i]` has `<image>` tokens: a slot beyond them is never encoded. With `supervised` (b, t), true at
        tokens to be predicted, the output is their `SupervisedLoss`, without logits. `clear_conditioned_layers=False`
        keeps the images for the calls that follow, as `cache_media` does. Raises ValueError where images and `<image>`
        tokens do not agree.
        """
        if labels is not None and supervised is not None:
            raise ValueError("labels need all logits, and supervised gives none: give one of them")
        media = self._media(vision_x, lang_x)
        if supervised is not None:
            return self._supervised(media, lang_x, attention_mask, supervised)
        if not clear_conditioned_layers:
            self._keep(media)
        with conditioned(media):
            return self.lang_encoder(
                input_ids=lang_x,
                attention_mask=attention_mask,
                labels=labels,
                past_key_values=past_key_values,
                use_cache=use_cache,
            )

    def _supervised(
        self, media: Media | None, lang_x: Tensor, attention_mask: Tensor | None, supervised: Tensor
    ) -> SupervisedLoss:
        targets = lang_x[:, 1:][supervised[:, 1:]]
        predicting = F.pad(supervised[:, 1:], (0, 1))  # a token is predicted at the position before it
        if self._ends_in_its_head is None:
            self._ends_in_its_head = ends_in_its_head(self.lang_encoder)
        with conditioned(media, predicting, skips_head=self._ends_in_its_head) as call:
            logits = self.lang_encoder(input_ids=lang_x, attention_mask=attention_mask, use_cache=False).logits
        if call.hidden is None:
            return loss_of_logits(logits, targets)
        head: Any = self.lang_encoder.get_output_embeddings()  # type: ignore[operator]
        rows = self.trained_rows
        if rows is None or not rows.in_head:
            return supervised_loss(call.hidden, head.weight, head.bias, targets)
        return supervised_loss(call.hidden, head.weight, head.bias, targets, rows.weight, rows.ids)

    @torch.no_grad()
    def generate(
        self,
        vision_x: Tensor | None,
        lang_x: Tensor,
        attention_mask: Tensor | None = None,
        *,
        latents: Tensor | None = None,
        copies: int = 1,
        **generation: Any,
    ) -> Any:
        """Prompt and generated ids (b, t + new), by `lang_encoder.generate` with any argument it takes.

        `vision_x` as in `forward`, or in its place the `latents` that `encode` made of the images; pad `lang_x` on the
        left. Each prompt is answered in so many `copies`, one after another in the output (b copies, t + new). Stops at
        `<|endofchunk|>` (v1: at the end of the sequence) unless `eos_token_id` says otherwise, and never generates
        `<image>`.
        """
        generation.setdefault("eos_token_id", self.stop_token_id)
        if "generation_config" not in generation:
            generation.setdefault("use_cache", True)  # off in MPT's own settings
        given = generation.pop("logits_processor", None) or []
        generation["logits_processor"] = LogitsProcessorList([Never(self.media_token_id), *given])
        media = self._media(vision_x, lang_x, latents)
        if copies > 1:
            lang_x = lang_x.repeat_interleave(copies, dim=0)
            attention_mask = None if attention_mask is None else attention_mask.repeat_interleave(copies, dim=0)
        with conditioned(media):
            return self.lang_encoder.generate(input_ids=lang_x, attention_mask=attention_mask, **generation)  # type: ignore[operator]

    @torch.no_grad()
    def score(
        self, vision_x: Tensor | None, lang_x: Tensor, candidates: Sequence[Tensor], *, latents: Tensor | None = None
    ) -> Tensor:
        """The log-likelihood of each of the candidates (k,) as what follows the one prompt `lang_x` (1, t): (c,).

        `vision_x` and `latents` as in `generate`. The prompt is computed once.
        """
        if not candidates:
            return torch.zeros(0, device=lang_x.device)
        media = self._media(vision_x, lang_x, latents)
        last = torch.zeros_like(lang_x, dtype=torch.bool)
        last[:, -1] = True
        with conditioned(media, last):
            prompt = self.lang_encoder(input_ids=lang_x, use_cache=True)
        first = prompt.logits.float().log_softmax(dim=-1).flatten()
        scores = []
        for start in range(0, len(candidates), SCORED_AT_ONCE):
            some = candidates[start : start + SCORED_AT_ONCE]
            ids = pad_sequence(list(some), batch_first=True)
            if ids.shape[1] == 1:  # what follows the prompt's last token is all there is
                scores.append(first[ids[:, 0]])
                continue
            is_real = pad_sequence([torch.ones_like(candidate) for candidate in some], batch_first=True)
            cache = deepcopy(prompt.past_key_values)
            cache.reorder_cache(lang_x.new_zeros(len(some)))  # the one row, for each of them
            at = is_real[:, 1:].bool()
            with conditioned(media, at):
                mask = torch.cat((lang_x.new_ones(len(some), lang_x.shape[1]), is_real[:, :-1]), dim=1)
                out = self.lang_encoder(
                    input_ids=ids[:, :-1], attention_mask=mask, past_key_values=cache, use_cache=True
                )
            rest = out.logits.float().log_softmax(dim=-1).gather(1, ids[:, 1:][at][:, None]).squeeze(1)
            scores.append(first[ids[:, 0]].index_add(0, at.nonzero()[:, 0], rest))
        return torch.cat(scores)

    @torch.no_grad()
    def cache_media(self, input_ids: Tensor, vision_x: Tensor) -> None:
        """Keep the images of `input_ids` (b, t) for calls with `vision_x=None`, until `uncache_media`.

        Text without `<image>` then continues `input_ids`: it attends each sample's last image.
        """
        self.uncache_media()
        self._keep(self._media(vision_x, input_ids))

    def uncache_media(self) -> None:
        """Forget the images of `cache_media`."""
        self._cached_media = None

    def train(self, mode: bool = True) -> "Flamingo":
        """Training mode, or not; the frozen tower stays as it was trained, with its statistics of batches."""
        super().train(mode)
        self.vision_encoder.eval()
        return self

    def gradient_checkpointing_enable(self) -> None:
        """Recompute the activations of each layer, and of each block, in the backward pass."""
        self.lang_encoder.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]

    def compile_layers(self) -> None:
        """Compile each decoder layer, for texts of any length, at its first call."""
        for layer in self.lang_encoder.modules():
            if isinstance(layer, FlamingoLayer):
                layer.decoder_layer.compile(dynamic=True)

    def _keep(self, media: Media | None) -> None:
        if media is not None:
            media.is_cached = True
        self._cached_media = media

    def _media(self, vision_x: Tensor | None, lang_x: Tensor, latents: Tensor | None = None) -> Media | None:
        if self._cached_media is not None:
            if vision_x is not None or latents is not None:
                raise ValueError("images are cached: pass vision_x=None, or call uncache_media() first")
            return self._cached_media
        locations = lang_x == self.media_token_id
        counts = locations.sum(dim=1)
        if vision_x is not None:
            latents = self.encode(real_images(vision_x, counts))
        if latents is None:
            if locations.any():
                raise ValueError("the text holds <image> tokens, but no images were given")
            return None
        if len(latents) != int(counts.sum()):
            raise ValueError(f"latents of {len(latents)} images were given for {int(counts.sum())} <image> tokens")
        images = ImageLatents(latents)
        return Media(images, locations, self.media_token_id, self.only_attend_immediate_media, self.media_attention)

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, F, C, H, W) to latents (N, n, d); N may be 0, so that every rank's gradients reach the resampler."""
        latents = self.perceiver.latents
        if len(images):
            tokens = visual_tokens(self.vision_encoder, rearrange(images, "N F C H W -> (N F) C H W"))
            tokens = rearrange(tokens, "(N F) v d -> N 1 F v d", F=images.shape[1])
        else:
            tokens = latents.new_empty(0, 1, 1, 1, latents.shape[-1])
        return self.perceiver(tokens.to(latents.dtype)).squeeze(1)


@torch.no_grad()
def ends_in_its_head(lang_encoder: nn.Module) -> bool:
    """Whether the logits are what a plain linear head gives: some models scale or cap them (Gemma 2, Cohere, Granite)."""
    head = lang_encoder.get_output_embeddings()  # type: ignore[operator]
    given: list[Tensor] = []
    handle = head.register_forward_hook(lambda _head, _args, logits: given.append(logits))
    was_training = lang_encoder.training
    try:
        ids = torch.zeros(1, 1, dtype=torch.long, device=head.weight.device)
        logits = lang_encoder.eval()(input_ids=ids, use_cache=False).logits  # dropout would move the random numbers on
    finally:
        lang_encoder.train(was_training)
        handle.remove()
    return type(head) is nn.Linear and logits is given[-1]


def real_images(vision_x: Tensor, counts: Tensor) -> Tensor:
    """The images that have an `<image>` token, (N, F, C, H, W), from padded slots or from real images alone.

    `counts` (b,) is the number of `<image>` tokens per sample. Raises ValueError where there are more tokens than images.
    """
    if vision_x.dim() == 5:
        if len(vision_x) != int(counts.sum()):
            raise ValueError(f"{len(vision_x)} images were given for {int(counts.sum())} <image> tokens")
        return vision_x
    if vision_x.dim() != 6 or len(vision_x) != len(counts):
        raise ValueError(
            f"vision_x must be (b, T, F, C, H, W) with b = {len(counts)}, or (N, F, C, H, W); it is {tuple(vision_x.shape)}"
        )
    slots = vision_x.shape[1]
    if int(counts.max()) > slots:
        row = int(counts.argmax())
        raise ValueError(f"sample {row} has {int(counts[row])} <image> tokens but only {slots} images")
    return vision_x[torch.arange(slots, device=counts.device) < counts[:, None]]
