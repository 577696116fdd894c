"""The prompt templates: exact bytes, since released checkpoints know no others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruction_dataset.dialogue import ASSISTANT, NEXT_TURN
from open_flamingo.instruction_tuning.data.prompts import TEMPLATES, escape, format_prompt, join_prompt, split_prompt

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


@given(st.lists(PARTS | st.text("\\<image>"), min_size=1, max_size=4))
def test_text_that_spells_out_an_image_token_or_ends_in_backslashes_is_read_back_and_makes_no_image(texts):
    assert split_prompt(join_prompt(texts)) == texts
    assert [split_prompt(escape(text)) for text in texts] == [[text] for text in texts]


@given(st.lists(PARTS.filter(lambda text: "\\<image>" not in text and not text.endswith("\\")), min_size=1, max_size=4))
def test_an_image_without_a_backslash_before_it_is_written_as_it_always_was(texts):
    assert join_prompt(texts) == "<image>".join(text.replace("<image>", "\\<image>") for text in texts)


def test_a_prompt_without_escapes_is_what_it_always_was():
    assert split_prompt("### Human: <image>a\\b <image>?\\\\") == ["### Human: ", "a\\b ", "?\\\\"]


def test_a_path_before_an_image_keeps_its_backslash():
    assert join_prompt(["C:\\", "what?"]) == "C:\\\\<image>what?"
    assert split_prompt("C:\\\\<image>what?") == ["C:\\", "what?"]
