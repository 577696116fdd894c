"""KV caches of conversations, so that a text that goes on is computed from where it does."""

from collections import OrderedDict
from collections.abc import Sequence

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
        """The cache with most of the beginning of `text`, cut to what they share; it is held no longer.

        At least one token of the text is left to be computed, since its logits are wanted.
        """
        shared = {known: shared_length(known, text[:-1]) for known in self._caches}
        best = max(shared, key=lambda known: shared[known], default=())
        if not shared.get(best):
            return None
        cache = self._caches.pop(best)
        cache.crop(shared[best] - cache.get_seq_length())
        return cache

    def keep(self, text: Sequence[Token], cache: Cache) -> None:
        """Hold the cache of a text, which may have been computed but for its last token, if it can be cut."""
        if not self.size or not all(type(layer) is DynamicLayer for layer in cache.layers):
            return  # a window that slid on has lost what a cut would need
        known = tuple(text[: cache.get_seq_length()])
        self._caches.pop(known, None)
        self._caches[known] = cache
        if len(self._caches) > self.size:
            self._caches.popitem(last=False)


def shared_length(a: Sequence[Token], b: Sequence[Token]) -> int:
    """How many tokens two texts begin with alike."""
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))
