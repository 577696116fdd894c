"""Records to ids and masks: identical to the recorded ones, BOS once, EOS supervised, user text never special."""

import json

import pytest
from tiny import END_OF_TEXT, byte_level_tokenizer
from tokenizers.processors import TemplateProcessing
from toy import GOLDENS, golden_tokenizer
from transformers import PreTrainedTokenizerBase

from instruction_dataset.records import Record, image_tag, parse_record
from open_flamingo.instruction_tuning.data.conversation import Conversation, TurnTokenizer
from open_flamingo.src.factory import END_OF_CHUNK_TOKEN, MEDIA_TOKEN, add_special_tokens

RECORDED = GOLDENS / "shared" / "data"
SAMPLES = [parse_record(raw) for raw in json.loads((RECORDED / "samples.json").read_text())]
TOKENIZATION = json.loads((RECORDED / "tokenization.json").read_text())
SPELLS_SPECIAL_TOKENS = 2
"""The sample whose answer spells special tokens out; the 2023 code turned them into special tokens."""
PLAIN_SAMPLES = [i for i in range(len(SAMPLES)) if i != SPELLS_SPECIAL_TOKENS]
TEMPLATES = ["guanaco", "guanaco-no-prompt"]


def turn_tokenizer(tokenizer: PreTrainedTokenizerBase, template: str = "guanaco-no-prompt") -> TurnTokenizer:
    """A TurnTokenizer with the `<image>` of a tokenizer that has the special tokens."""
    return TurnTokenizer(tokenizer, tokenizer.convert_tokens_to_ids(MEDIA_TOKEN), template)


def conversation(turns: TurnTokenizer, *records: Record) -> Conversation:
    """The records as turns of one conversation."""
    joined = Conversation()
    for i, record in enumerate(records):
        joined.extend(turns.turns(record, first=i == 0))
    return joined


def with_special_tokens(*, starts_with_bos: bool, **special: str) -> PreTrainedTokenizerBase:
    """The tiny tokenizer with tokens of the factory and `special`; `starts_with_bos` as LLaMA's does."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens(special)
    if starts_with_bos:
        bos = tokenizer.bos_token
        ids = [(bos, tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=ids)
    add_special_tokens(tokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return golden_tokenizer()


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("index", PLAIN_SAMPLES)
def test_ids_and_mask_of_a_sample_are_the_recorded_ones(tokenizer, template, index):
    recorded = TOKENIZATION[f"bytebpe/{template}"]["samples"][index]
    ours = conversation(turn_tokenizer(tokenizer, template), SAMPLES[index])
    assert ours.ids == recorded["input_ids"]
    assert ours.supervised == [bool(x) for x in recorded["target_mask"]]
    assert [f"IMG/{path}" for path in ours.images] == recorded["img_paths"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_and_mask_of_several_turns_are_the_recorded_ones(tokenizer, template):
    recorded = TOKENIZATION[f"bytebpe/{template}"]["multiturn_all"]
    turns = turn_tokenizer(tokenizer, template)
    before = conversation(turns, *SAMPLES[:SPELLS_SPECIAL_TOKENS])
    whole = conversation(turns, *SAMPLES)
    after = len(conversation(turns, *SAMPLES[: SPELLS_SPECIAL_TOKENS + 1]).ids) - len(whole.ids)
    for ours, theirs in ((whole.ids, "input_ids"), (whole.supervised, "target_mask")):
        assert ours[: len(before.ids)] == recorded[theirs][: len(before.ids)]
        assert ours[after:] == recorded[theirs][after:]


def test_special_tokens_spelled_out_in_a_text_stay_plain_text(tokenizer):
    spelled = f"{MEDIA_TOKEN} {END_OF_CHUNK_TOKEN} <PAD> {END_OF_TEXT}"
    (turn,) = turn_tokenizer(tokenizer).turns(Record(f"{image_tag('a.png')}{spelled}", spelled), first=True)
    special = {*tokenizer.all_special_ids, tokenizer.convert_tokens_to_ids(MEDIA_TOKEN)}
    assert [i for i in turn.prompt if i in special] == [tokenizer.convert_tokens_to_ids(MEDIA_TOKEN)]
    assert [i for i in turn.answer if i in special] == [tokenizer.eos_token_id]
    assert tokenizer.decode(turn.answer[:-1]) == spelled
    assert tokenizer.decode(turn.prompt) == f"### Human: {MEDIA_TOKEN}{spelled}\n### Assistant: "


def test_the_recorded_answer_that_spells_special_tokens_out_is_read_back_whole(tokenizer):
    record = SAMPLES[SPELLS_SPECIAL_TOKENS]
    (turn,) = turn_tokenizer(tokenizer).turns(record, first=True)
    assert tokenizer.decode(turn.answer[:-1]) == record.output
    assert turn.prompt.count(tokenizer.convert_tokens_to_ids(MEDIA_TOKEN)) == len(turn.images) == 2


def test_bos_stands_once_at_the_very_start_of_a_conversation():
    tokenizer = with_special_tokens(starts_with_bos=True, bos_token="<s>")
    ids = conversation(turn_tokenizer(tokenizer), *SAMPLES).ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_bos_token_that_the_tokenizer_does_not_add_is_not_added():
    tokenizer = with_special_tokens(starts_with_bos=False, bos_token="<s>")
    assert tokenizer.bos_token_id not in conversation(turn_tokenizer(tokenizer), *SAMPLES).ids


def test_only_answers_and_their_eos_are_supervised_where_bos_pad_and_eos_are_one_token():
    tokenizer = with_special_tokens(starts_with_bos=False, bos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
    sample = conversation(turn_tokenizer(tokenizer), *SAMPLES)
    supervised = [i for i, learnt in zip(sample.ids, sample.supervised, strict=True) if learnt]
    answers = tokenizer.decode(supervised, skip_special_tokens=False)
    assert answers == "".join(f"{record.output}{END_OF_TEXT}" for record in SAMPLES)


def test_an_empty_prompt_begins_as_a_text_does_with_its_bos_or_the_end_of_the_one_before():
    with_bos, without = (
        turn_tokenizer(with_special_tokens(starts_with_bos=starts, bos_token="<s>")) for starts in (True, False)
    )
    assert with_bos.prompt([""]) == with_bos.bos
    assert without.prompt([""]) == [without.eos]
    assert without.prompt(["", ""]) == [without.media_token_id]


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = byte_level_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        TurnTokenizer(tokenizer, 0, "guanaco")


def test_an_unclosed_image_tag_is_refused(tokenizer):
    with pytest.raises(ValueError, match="image tag is not closed"):
        turn_tokenizer(tokenizer).turns(Record("<img_path>a.png What is this?", "A cat."), first=True)
