"""KV caches of conversations, so that a text that goes on is computed from where it does."""

from collections import OrderedDict
from collections.abc import Sequence
from copy import copy

from transformers.cache_utils import Cache, DynamicLayer

Token = int | bytes
"""A token's id, or, at an `<image>`, the digest of the image: what follows depends on it."""


class Prefixes:
    """The caches of the texts that were computed last; each serves the text that goes on with it longest."""

    def __init__(self, size: int) -> None:
        """Hold at most `size` caches, the latest ones."""
        self.size = size
        self._caches: OrderedDict[tuple[Token, ...], Cache] = OrderedDict()

    def take(self, text: Sequence[Token]) -> Cache | None:
        """A cache of as much of the beginning of `text` as is held; the oldest one makes room for it.

        At least one token of the text is left to be computed, since its logits are wanted.
        """
        shared = {known: shared_length(known, text[:-1]) for known in self._caches}
        best = max(shared, key=lambda known: shared[known], default=())
        cache = cut(self._caches[best], shared[best]) if shared.get(best) else None
        if cache is not None and 2 * shared[best] > len(best):
            del self._caches[best]  # the text goes on from it; one that only begins alike leaves it to its conversation
        self._make_room()
        return cache

    def keep(self, text: Sequence[Token], cache: Cache) -> None:
        """Hold the cache of a text, which may have been computed but for its last token, if it can be cut."""
        if not self.size or not all(type(layer) is DynamicLayer for layer in cache.layers):
            return  # a window that slid on has lost what a cut would need
        known = tuple(text[: cache.get_seq_length()])
        self._caches.pop(known, None)
        self._make_room()
        self._caches[known] = cache

    def _make_room(self) -> None:
        """Let go of the oldest caches, so that with one more there are at most `size`."""
        while self._caches and len(self._caches) >= self.size:
            self._caches.popitem(last=False)


def cut(cache: Cache, length: int) -> Cache:
    """A cache of the first `length` tokens of one that stays whole."""
    cache = copy(cache)
    cache.layers = [copy(layer) for layer in cache.layers]  # with the same tensors: a layer grows into new ones
    cache.crop(length - cache.get_seq_length())
    return cache


def shared_length(a: Sequence[Token], b: Sequence[Token]) -> int:
    """How many tokens two texts begin with alike."""
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))
