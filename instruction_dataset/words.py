"""Made-up text: words as common as English words are, in sentences and paragraphs, of no meaning."""

from functools import cache
from itertools import pairwise, product

import numpy as np

COMMON = """the of and a to in is on with it that for as are at this by from be an or his her was one has not they their
which have there can also its you more all two some while into other may we what these how each such about both over near
would if your between them most behind he she will no but when where up out so than through like only just under many"""
STEMS = """image person table street water light wall color tree building window picture man woman group field train red
white scene background sky grass car large small blue green front side hand wood road black child room door floor dog cat
bird horse food kitchen chair bench beach mountain river bridge boat plane bus truck sign clock phone paper book bag hat
shirt shoe ball game player team park garden flower leaf fruit bread coffee glass bottle bowl cup shelf bed lamp mirror
hold stand walk look show move play ride carry turn reach wait rest talk work help make place point follow start change
reason question answer detail example number time day night morning summer winter snow rain cloud sun shadow wind storm
suggest appear describe compare include contain provide create support require consider believe observe bright dark"""
NUMBERS = "2 3 4 10 5 12 20 8 2019 15 100 1998 50 30 7.5 2023 64 1,000 9:30 café naïve façade"
SUFFIXES = ("s", "ing", "ed", "er", "ly", "ness", "less")
ONSETS, VOWELS = "b d g k l m n r s t v br st tr ch", "aeiou"
ENDINGS = (" ", ", ", ". ", "? ", ".\n\n")
PLAIN, COMMA, STOP, ASK, PARAGRAPH = range(len(ENDINGS))
SLOTS = 1 << 16


def texts(rng: np.random.Generator, lengths: np.ndarray, last: int) -> list[str]:
    """Texts of so many words each, in sentences of about a dozen; `last` is how the last one ends."""
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    chance = rng.integers(256, size=total, dtype=np.uint8)
    ending = np.select([chance < 3, chance < 21, chance < 36], [PARAGRAPH, STOP, COMMA], PLAIN)
    ending[ends - 1] = last
    capital = np.roll((ending != PLAIN) & (ending != COMMA), 1)
    forms, words = _vocabulary()
    pieces = forms[words[rng.integers(SLOTS, size=total, dtype=np.uint16)], ending, capital.astype(np.int8)].tolist()
    bounds = [0, *ends.tolist()]
    return ["".join(pieces[start:end])[:-1] for start, end in pairwise(bounds)]


@cache
def _vocabulary() -> tuple[np.ndarray, np.ndarray]:
    """Every word in every form, an array of (word, ending, capital), and the word of each of 65,536 even chances.

    The commonest come first, by the law of Zipf and Mandelbrot: English, derived from it, names such as a tail has.
    """
    stems, syllables = STEMS.split(), ["".join(pair) for pair in product(ONSETS.split(), VOWELS)]
    derived = [stem.removesuffix("e") + end if end[0] in "ei" else stem + end for end in SUFFIXES for stem in stems]
    names = ["".join(parts).capitalize() for parts in product(syllables[::2], syllables[1::4], ("n", "ski"))]
    words = dict.fromkeys([*COMMON.split(), *stems[:150], *NUMBERS.split(), *stems[150:], *derived, *names])
    pairs = [(word, word[0].upper() + word[1:]) for word in words]
    forms = np.array([[[form + end for form in pair] for end in ENDINGS] for pair in pairs], dtype=object)
    share = np.cumsum(1 / (np.arange(len(words)) + 2.7))
    return forms, np.searchsorted(share / share[-1], (np.arange(SLOTS) + 0.5) / SLOTS)
