"""Dialogues: one record per answer, whose text says again what the turns were, with the images before it all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruction_dataset.dialogue import ASSISTANT, NEXT_TURN, expand, history, last_turn, refuse_tags
from instruction_dataset.records import IMAGE_TAG, image_tag, split_images

PIECES = ["\n", "#", "###", " ", ":", "### Human: ", "### Assistant: ", "Human", "é", "图", "🙂", "a", "<img_path"]
TEXTS = (st.text() | st.lists(st.sampled_from(PIECES)).map("".join)).filter(
    lambda text: "\n### " not in text and IMAGE_TAG not in text
)
TURNS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5)
PATHS = st.lists(st.sampled_from(["a.jpg", "b/c d.png", "图.jpg"]), max_size=3)


def parsed(record, images):
    """The turns of a record, read back by what stands between them."""
    text = record.input.removeprefix(images)
    *before, question = text.split(NEXT_TURN)
    turns = [tuple(turn.split(ASSISTANT)) for turn in before]
    return [*turns, (question, record.output)]


@given(TURNS, PATHS)
def test_there_is_one_record_per_answer_and_it_holds_the_dialogue_up_to_there(turns, paths):
    images = "".join(map(image_tag, paths))
    before = [(question.rstrip(), answer.rstrip()) for question, answer in turns]
    assert [parsed(record, images) for record in expand(turns, images)] == [
        [*before[:number], turn] for number, turn in enumerate(turns)
    ]


@given(TURNS, PATHS)
def test_images_stand_before_everything_and_once(turns, paths):
    images = "".join(map(image_tag, paths))
    for record in expand(turns, images):
        assert record.input.startswith(images)
        assert split_images(record.input)[1] == paths


@given(TURNS, PATHS)
def test_the_last_turn_is_the_last_of_all(turns, paths):
    images = "".join(map(image_tag, paths))
    assert last_turn(turns, images) == list(expand(turns, images))[-1]


@given(TURNS, TEXTS)
def test_the_history_is_what_the_next_question_is_put_behind(turns, question):
    assert history(turns) + question == last_turn([*turns, (question, "")]).input


def test_single_newlines_join_turns_also_where_a_text_ends_in_one():
    assert history([("Why?\n", "A zebra.\n\n")]) == "Why?\n### Assistant: A zebra.\n### Human: "


def test_nothing_said_gives_no_record():
    assert list(expand([], image_tag("a.jpg"))) == []


@given(TEXTS, TEXTS)
def test_a_text_with_a_tag_is_refused_and_any_other_is_left_as_it_is(before, after):
    assert refuse_tags(before) == before
    with pytest.raises(ValueError, match="take it out of the source"):
        refuse_tags(before + IMAGE_TAG + after)
