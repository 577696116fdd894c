"""Packing: what is chosen stays within room and slots; `fill` skips none, `fit` leaves as little as can be."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_flamingo.instruction_tuning.data.conversation import Conversation, Turn
from open_flamingo.instruction_tuning.data.packing import fill, fit

MEDIA = 9
ROOM, SLOTS = st.integers(-3, 60), st.integers(0, 6)
RECORDS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 4)), max_size=8)


def columns(records: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Lengths and numbers of images."""
    return [length for length, _ in records], [images for _, images in records]


@given(ROOM, SLOTS, RECORDS)
def test_filling_takes_records_as_they_come_until_the_room_is_full_or_the_next_has_too_many_images(
    room, slots, records
):
    lengths, images = columns(records)
    chosen = fill(room, slots, lengths, images)
    assert chosen == list(range(len(chosen)))
    assert sum(lengths[: len(chosen) - 1]) < room or not chosen
    assert sum(images[i] for i in chosen) <= slots
    if len(chosen) < len(records):
        left = slots - sum(images[i] for i in chosen)
        assert sum(lengths[i] for i in chosen) >= room or images[len(chosen)] > left


def test_filling_takes_the_last_record_though_it_has_to_be_cut():
    assert fill(10, 0, [6, 6, 6], [0, 0, 0]) == [0, 1]


def test_filling_stops_at_a_record_with_too_many_images_and_skips_none():
    assert fill(50, 1, [3, 5, 3], [0, 2, 0]) == [0]


@pytest.mark.parametrize("choose", [fill, fit])
def test_a_full_sample_takes_nothing(choose):
    assert choose(0, 5, [1, 2], [0, 0]) == choose(-4, 5, [1, 2], [0, 0]) == []


@given(ROOM, SLOTS, RECORDS)
def test_fitting_finds_what_trying_everything_finds(room, slots, records):
    lengths, images = columns(records)
    chosen = fit(room, slots, lengths, images)
    assert chosen == sorted(set(chosen))

    def length_of(some: tuple[int, ...]) -> int:
        total = sum(lengths[i] for i in some)
        return total if total <= max(room, 0) and sum(images[i] for i in some) <= slots else -1

    everything = [some for n in range(len(records) + 1) for some in combinations(range(len(records)), n)]
    assert length_of(tuple(chosen)) == max(map(length_of, everything))


def test_images_cut_off_with_their_tokens_are_dropped():
    conversation = Conversation()
    conversation.extend([Turn([MEDIA, 1, 1], [2], ["0"]), Turn([MEDIA, MEDIA, MEDIA, 1], [2], ["1", "2", "3"])])
    conversation.cut(6, MEDIA)
    assert conversation.ids == [MEDIA, 1, 1, 2, MEDIA, MEDIA]
    assert conversation.images == ["0", "1", "2"]
