"""The prompt templates: exact bytes, since released checkpoints know no others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruction_dataset.dialogue import ASSISTANT, NEXT_TURN
from open_flamingo.instruction_tuning.data.prompts import TEMPLATES, escape, format_prompt, split_prompt

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and"
    " polite answers to the user's questions."
)


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("guanaco", f"{SYSTEM}\n### Human: What is this?\n### Assistant: "),
        ("guanaco-no-prompt", "### Human: What is this?\n### Assistant: "),
    ],
)
def test_a_prompt_is_byte_for_byte_what_the_2023_checkpoints_were_trained_on(template, prompt):
    assert format_prompt("What is this?", template) == prompt


def test_a_further_turn_starts_on_a_line_of_its_own():
    assert f"{NEXT_TURN}And this?{ASSISTANT}" == "\n### Human: And this?\n### Assistant: "


def test_there_are_two_templates():
    assert sorted(TEMPLATES) == ["guanaco", "guanaco-no-prompt"]


PARTS = st.lists(st.sampled_from(["<image>", "\\", "<", "image>", "word ", "<|endofchunk|>"]), max_size=6).map("".join)


@given(st.lists(PARTS.filter(lambda text: not text.endswith("\\")), min_size=1, max_size=4))
def test_text_that_spells_out_an_image_token_is_read_back_and_makes_no_image(texts):
    assert split_prompt("<image>".join(map(escape, texts))) == texts


def test_a_prompt_without_escapes_is_what_it_always_was():
    assert split_prompt("### Human: <image>a\\b <image>?") == ["### Human: ", "a\\b ", "?"]
