"""Which image each text token attends, and for how long: the conditioning of one call.

A call of the model sets a context variable, and leaving the call resets it: nothing of one call reaches the next, also
when it raises, and threads do not see each other's. Inside a call the stack of decoder layers may run many times
(generation): each run is placed anew from its input ids and the length of the KV cache, so that prompts, single tokens,
beams and chunks all find their images. Keys and values of the images are computed once per call and layer.
"""

# b samples, r rows (b times beams), t text tokens of a run, N real images of the batch, n latents, h heads, d width,
# m attending tokens of a run, c chunks, C queries of a chunk

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from open_flamingo.src.attention import attend

MediaAttention = Literal["previous", "next"]
"""Whether a text token belongs to the image before it, or, in OpenFlamingo's first version, to the image after it."""

QUERY_CHUNK = 64
"""Tokens of one image are attended in chunks of at most this many: padding stays small, however long the text."""


class ProjectsMedia(Protocol):
    """A layer that turns latents into its keys and values."""

    def keys_values(self, latents: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass
class ImageLatents:
    """The latents of a batch's images, and their keys and values in the layers that attend them."""

    values: Tensor
    """Real images only, in reading order: (N, n, d)."""
    memo: dict[ProjectsMedia, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def keys_values(self, layer: ProjectsMedia) -> tuple[Tensor, Tensor]:
        """Keys and values of `layer`, computed once while no gradient is wanted."""
        if torch.is_grad_enabled():
            return layer.keys_values(self.values)
        if layer not in self.memo:
            self.memo[layer] = layer.keys_values(self.values)
        return self.memo[layer]


@dataclass
class Media:
    """The images of a batch and where they stand in its text."""

    latents: ImageLatents
    locations: Tensor
    """True at the `<image>` tokens of the text the images came with: (b, t)."""
    media_token_id: int
    only_immediate: bool = True
    """A token attends its own image alone; False: all images up to its own."""
    attention: MediaAttention = "previous"
    is_cached: bool = False
    """Text without `<image>` continues the text the images came with, with or without a KV cache."""
    steps: dict[int, "AttendedMedia"] = field(default_factory=dict)
    """What a generated token of so many rows attends: the same in every step."""

    def place(self, input_ids: Tensor, past: int) -> "AttendedMedia":
        """Find the images of `input_ids` (r, t), which follow `past` tokens already in the KV cache."""
        rows, length = input_ids.shape
        is_step = length == 1 and past >= self.locations.shape[1] and not torch.is_grad_enabled()
        if is_step and rows in self.steps:
            return self.steps[rows]
        attended = self._place(input_ids, past)
        if is_step:
            attended.memo = {}
            self.steps[rows] = attended
        return attended

    def _place(self, input_ids: Tensor, past: int) -> "AttendedMedia":
        counts = self.locations.sum(dim=1)
        is_media = input_ids == self.media_token_id
        continues = self.is_cached and not bool(is_media.any())
        seen = counts if continues else self.locations[:, :past].sum(dim=1)
        beams = input_ids.shape[0] // self.locations.shape[0]
        first, counts, seen = (
            x.repeat_interleave(beams)[:, None] for x in (counts.cumsum(dim=0) - counts, counts, seen)
        )
        time = seen + is_media.cumsum(dim=1)
        if self.attention == "previous":
            time = time.minimum(counts)
        else:
            time = time + ~is_media
            time = time.where(time <= counts, 0)  # text after the last image has none
        if self.only_immediate:
            return LastImage(self.latents, time, first)
        return AllImagesBefore(self.latents, time, first)


class AttendedMedia:
    """The attending tokens of one run of the decoder layers, and how they attend.

    It must not know the `Media` that keeps it for the steps to come: whatever such a cycle holds stays in memory, after
    the call, until Python collects garbage.
    """

    def __init__(self, latents: ImageLatents, time: Tensor, first: Tensor) -> None:
        """`time` (r, t) is the number of each token's image in its sample, from 1, or 0; `first` (r, 1) that sample's first."""
        self.latents, self.time, self.first = latents, time, first
        self.tokens = (time > 0).flatten().nonzero().squeeze(1)
        """Flat indices of the tokens with an image, in reading order: (m,)."""
        self.memo: dict[ProjectsMedia, tuple[Tensor, Tensor]] | None = None
        """Keys and values as `attend` takes them, where they are needed again and again."""

    def last(self, length: int) -> "AttendedMedia":
        """The last `length` tokens of the run: all that some upper layers see of a prompt (Gemma 4)."""
        return self if length == self.time.shape[1] else type(self)(self.latents, self.time[:, -length:], self.first)

    def keys_values(self, layer: ProjectsMedia) -> tuple[Tensor, Tensor]:
        """Keys and values of `layer` as `attend` takes them."""
        if self.memo is None:
            return self.arrange(*self.latents.keys_values(layer))
        if layer not in self.memo:
            self.memo[layer] = self.arrange(*self.latents.keys_values(layer))
        return self.memo[layer]

    def arrange(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (N, h, n, d) of all images in the order in which they are attended."""
        raise NotImplementedError

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (m, h, d), keys and values of `keys_values` to outputs (m, h, d)."""
        raise NotImplementedError


class LastImage(AttendedMedia):
    """Each token attends the latents of one image: runs of tokens with the same image, cut into padded chunks.

    The work does not depend on the number of images, and no mask is needed.
    """

    def __init__(self, latents: ImageLatents, time: Tensor, first: Tensor) -> None:
        super().__init__(latents, time, first)
        image = (first + time - 1).flatten()[self.tokens]
        starts = torch.ones_like(image, dtype=torch.bool)
        starts[1:] = image[1:] != image[:-1]
        position = torch.arange(len(image), device=image.device)
        within = position - torch.where(starts, position, 0).cummax(dim=0).values if len(image) else position
        self.size = min(QUERY_CHUNK, int(within.max()) + 1) if len(image) else 1
        offset = within % self.size
        chunk = (offset == 0).cumsum(dim=0) - 1
        self.slots = chunk * self.size + offset
        self.images = image[offset == 0]

    def arrange(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k[self.images], v[self.images]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        padded = q.new_zeros(len(self.images) * self.size, *q.shape[1:]).index_copy(0, self.slots, q)
        queries = rearrange(padded, "(c C) h d -> c h C d", C=self.size)
        out = attend(queries, k, v)
        return rearrange(out, "c h C d -> (c C) h d")[self.slots]


class AllImagesBefore(AttendedMedia):
    """Each token attends the latents of every image up to its own, through a mask over all images of the batch."""

    def __init__(self, latents: ImageLatents, time: Tensor, first: Tensor) -> None:
        super().__init__(latents, time, first)
        image = torch.arange(len(latents.values), device=time.device)
        first, time = first.expand_as(time).flatten()[self.tokens], time.flatten()[self.tokens]
        is_seen = (image >= first[:, None]) & (image < (first + time)[:, None])
        self.mask = is_seen.repeat_interleave(latents.values.shape[1], dim=1)

    def arrange(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        k, v = (rearrange(x, "N h n d -> h (N n) d") for x in (k, v))
        return k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q.transpose(0, 1), k, v, self.mask).transpose(0, 1)


@dataclass
class Call:
    """What the layers need to know of the call they run in."""

    media: Media | None = None
    logits_at: Tensor | None = None
    skips_head: bool = False
    attended: AttendedMedia | None = None
    hidden: Tensor | None = None
    """What the head would have turned into logits, where it is skipped: (m, d)."""


_CALL: ContextVar[Call | None] = ContextVar("flamingo_call", default=None)


@contextmanager
def conditioned(media: Media | None, logits_at: Tensor | None = None, *, skips_head: bool = False) -> Iterator[Call]:
    """Run the language model on `media`, with logits, or hidden states alone, at `logits_at` (b, t) only, if given."""
    call = Call(media, logits_at, skips_head)
    token = _CALL.set(call)
    try:
        yield call
    finally:
        _CALL.reset(token)


def attended_media(length: int) -> AttendedMedia | None:
    """What the last `length` tokens of the run under way attend; None outside a call and in text without images."""
    call = _CALL.get()
    return call.attended.last(length) if call and call.attended else None


def place_media(_stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the module that runs the decoder layers: finds the images of its input."""
    call = _CALL.get()
    if call is None or call.media is None:
        return
    input_ids = kwargs.get("input_ids", args[0] if args else None)
    if input_ids is None:
        if call.attended is not None:  # placed further out
            return
        raise ValueError("the images of a text are found by its input_ids: call the model with ids, not inputs_embeds")
    if kwargs.get("cache_params") is not None or kwargs.get("state") is not None:
        raise ValueError("a language model with a state in place of a KV cache (Mamba, RWKV) is not supported")
    cache = kwargs.get("past_key_values")
    call.attended = call.media.place(input_ids, int(cache.get_seq_length()) if cache is not None else 0)


def select_positions(_head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Forward pre-hook of the output head: hidden states (b, t, d) to those at the wanted positions (m, d)."""
    call = _CALL.get()
    if call is None or call.logits_at is None:
        return None
    selected = args[0][call.logits_at]
    if call.skips_head:
        call.hidden, selected = selected, selected[:0]
    return (selected, *args[1:])
