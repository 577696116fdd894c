"""Packing: a sample never exceeds its limits, its images and its `<image>` tokens agree, its first turn leads."""

from hypothesis import given
from hypothesis import strategies as st

from open_flamingo.instruction_tuning.data.conversation import Turn
from open_flamingo.instruction_tuning.data.packing import fits, pack

MEDIA = 9
WORDS = st.lists(st.one_of(st.just(MEDIA), st.integers(0, 8)), min_size=1, max_size=12)
ANSWERS = st.lists(st.integers(0, 8), min_size=1, max_size=8)


def turn(prompt: list[int], answer: list[int], name: str = "") -> Turn:
    """A turn with one image, named after its place, for each media token of the prompt."""
    return Turn(prompt, answer, [f"{name}{i}" for i, token in enumerate(prompt) if token == MEDIA])


def plain(length: int, images: int = 0) -> Turn:
    """A turn of `length` tokens in all, one of them the answer, that starts with `images` images."""
    return turn([MEDIA] * images + [1] * (length - images - 1), [2])


@st.composite
def packings(draw):
    """Turns, limits that the first of them fits, and their packing."""
    turns = [turn(draw(WORDS), draw(ANSWERS), f"{i}-") for i in range(draw(st.integers(1, 6)))]
    limits = {
        "max_length": draw(st.integers(len(turns[0].prompt) + 1, 60)),
        "max_img": draw(st.integers(len(turns[0].images), 12)),
    }
    return turns, limits, pack(turns[0], turns[1:], **limits, media_token_id=MEDIA)


@given(packings())
def test_a_sample_stays_within_its_limits_and_its_images_agree_with_its_tokens(packing):
    _, limits, sample = packing
    assert len(sample.ids) == len(sample.supervised) <= limits["max_length"]
    assert len(sample.images) == sample.ids.count(MEDIA) <= limits["max_img"]


@given(packings())
def test_a_sample_is_the_first_turns_in_their_order_cut_at_the_end(packing):
    turns, _, sample = packing
    ids = [token for turn in turns for token in turn.prompt + turn.answer]
    supervised = [learnt for turn in turns for learnt in [False] * len(turn.prompt) + [True] * len(turn.answer)]
    images = [image for turn in turns for image in turn.images]
    assert sample.ids == ids[: len(sample.ids)]
    assert sample.supervised == supervised[: len(sample.ids)]
    assert sample.images == images[: len(sample.images)]


@given(packings())
def test_the_first_turn_always_leads_and_has_something_to_learn(packing):
    turns, _, sample = packing
    first = turns[0]
    assert sample.ids[: len(first.prompt)] == first.prompt
    assert sample.images[: len(first.images)] == first.images
    assert sample.supervised[len(first.prompt)]


@given(packings())
def test_a_sample_ends_early_only_where_the_turns_end_or_the_next_has_too_many_images(packing):
    turns, limits, sample = packing
    lengths = [sum(map(len, turns[: i + 1])) for i in range(len(turns))]
    if len(sample.ids) < min(limits["max_length"], lengths[-1]):
        next_turn = turns[lengths.index(len(sample.ids)) + 1]
        assert len(sample.images) + len(next_turn.images) > limits["max_img"]


def test_packing_stops_at_a_turn_with_too_many_images_and_skips_none():
    sample = pack(plain(4, 1), [plain(3), plain(5, 2), plain(3)], max_length=50, max_img=2, media_token_id=MEDIA)
    assert len(sample.ids) == 7


def test_no_further_turn_is_drawn_once_a_sample_is_full():
    drawn = iter([plain(6), plain(6), plain(6)])
    pack(plain(4), drawn, max_length=10, max_img=0, media_token_id=MEDIA)
    assert len(list(drawn)) == 2


def test_images_cut_off_with_their_tokens_are_dropped():
    sample = pack(plain(4, 1), [plain(6, 3)], max_length=6, max_img=4, media_token_id=MEDIA)
    assert sample.ids == [MEDIA, 1, 1, 2, MEDIA, MEDIA]
    assert sample.images == ["0", "0", "1"]


def test_a_record_fits_if_its_prompt_leaves_room_for_an_answer_and_its_images_are_not_too_many():
    assert fits(plain(8, 2), max_length=8, max_img=2)
    assert not fits(plain(8, 2), max_length=7, max_img=2)
    assert not fits(plain(8, 2), max_length=8, max_img=1)
