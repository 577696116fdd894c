"""Tokens on disk are those that the tokenizer gives, whatever the record; another tokenizer or template has its own."""

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import byte_level_tokenizer
from toy import golden_tokenizer, write_json_file

from instruction_dataset.records import Record, image_tag
from instruction_dataset.store import open_records
from open_flamingo.instruction_tuning.data import tokens as tokens_module
from open_flamingo.instruction_tuning.data.conversation import TurnTokenizer
from open_flamingo.instruction_tuning.data.tokens import open_tokens
from open_flamingo.src.factory import MEDIA_TOKEN, add_special_tokens

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda text: "<img_path>" not in text)
INPUT = st.lists(st.one_of(TEXT, st.sampled_from([image_tag("a.png"), image_tag("b/c.png")])), max_size=4).map("".join)
TURN = st.tuples(INPUT, TEXT.filter(str.strip))
RECORD = st.lists(TURN, min_size=1, max_size=3)


def turn_tokenizer(tokenizer=None, template: str = "guanaco") -> TurnTokenizer:
    tokenizer = tokenizer or golden_tokenizer()
    return TurnTokenizer(tokenizer, tokenizer.convert_tokens_to_ids(MEDIA_TOKEN), template)


def dialogue(turns: list[tuple[str, str]]) -> dict:
    """A record as one of `input/output` or, if it goes on, of `messages` with image parts."""
    if len(turns) == 1:
        return {"input": turns[0][0], "output": turns[0][1]}
    return {"messages": [m for said, answer in turns for m in (_message("user", said), _message("assistant", answer))]}


def _message(role: str, text: str) -> dict:
    pieces = text.split("<img_path>")
    parts = [
        {"type": "image_url", "image_url": {"url": piece}} if i % 2 else {"type": "text", "text": piece}
        for i, piece in enumerate(pieces)
    ]
    return {"role": role, "content": parts}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(RECORD, min_size=1, max_size=9), st.sampled_from(["guanaco", "guanaco-no-prompt"]))
def test_stored_turns_and_sizes_are_those_of_the_tokenizer(tmp_path, records, template):
    path = write_json_file(tmp_path / "data.json", [dialogue(turns) for turns in records])
    source, turns = open_records(path), turn_tokenizer(template=template)
    store = open_tokens(source, turns)
    assert len(store) == len(source) == len(records)
    for i, record in enumerate(source):
        for first in (True, False):
            expected, ours = turns.turns(record, first=first), store.turns(i, first=first)
            assert [(t.prompt, t.answer) for t in ours] == [(t.prompt, t.answer) for t in expected]
            assert [image for t in ours for image in t.images] == [image for t in expected for image in t.images]
        forms = [turns.turns(record, first=first) for first in (True, False)]
        images = sum(len(t.images) for t in forms[0])
        assert (
            store.sizes()[i].tolist()
            == list(store.size(i))
            == [*(sum(map(len, form)) for form in forms), len(forms[0][0].prompt), images]
        )


def test_rows_are_found_across_the_borders_of_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens_module, "BATCH", 4)
    monkeypatch.setattr("instruction_dataset.store.BATCH", 4)
    rows = [{"input": f"{image_tag(f'{i}.png') * (i % 3)}Number {i}", "output": f"It is {i}."} for i in range(11)]
    source, turns = open_records(write_json_file(tmp_path / "data.json", rows)), turn_tokenizer()
    store = open_tokens(source, turns)
    for i in range(len(rows)):
        assert source[i] == Record(rows[i]["input"], rows[i]["output"])
        assert store.turns(i, first=True) == turns.turns(source[i], first=True)
    assert list(store.images()) == [(i, [f"{i}.png"] * (i % 3)) for i in range(11) if i % 3]


def test_a_second_opening_reads_what_the_first_built_and_another_tokenizer_or_template_builds_its_own(tmp_path):
    source = open_records(write_json_file(tmp_path / "data.json", [{"input": "q", "output": "a"}]))
    other = byte_level_tokenizer()
    add_special_tokens(other)
    first, again = open_tokens(source, turn_tokenizer()), open_tokens(source, turn_tokenizer())
    assert first.folder == again.folder
    template = open_tokens(source, turn_tokenizer(template="guanaco-no-prompt"))
    assert len({first.folder, template.folder, open_tokens(source, turn_tokenizer(other)).folder}) == 3


def test_padding_set_by_an_earlier_call_is_not_another_tokenizer(tmp_path):
    source = open_records(write_json_file(tmp_path / "data.json", [{"input": "q", "output": "a"}]))
    tokenizer = golden_tokenizer()
    before = open_tokens(source, turn_tokenizer(tokenizer))
    tokenizer(["one", "a longer text"], padding=True, truncation=True, max_length=3)
    assert open_tokens(source, turn_tokenizer(tokenizer)).folder == before.folder


def test_a_store_travels_to_another_process(tmp_path):
    source = open_records(write_json_file(tmp_path / "data.json", [{"input": "q", "output": "a"}]))
    store = open_tokens(source, turn_tokenizer())
    there = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(there.sizes(), store.sizes())
    assert there.turns(0, first=True) == store.turns(0, first=True)
    assert pickle.loads(pickle.dumps(source))[0] == source[0]


@pytest.mark.parametrize("text", ["<img_path>a.png", "<img_path><img_path>"])
def test_a_malformed_tag_is_refused_with_file_and_record_and_builds_nothing(tmp_path, text):
    rows = [{"input": "q", "output": "a"}, {"input": text, "output": "a"}]
    source = open_records(write_json_file(tmp_path / "data.json", rows))
    with pytest.raises(ValueError, match=r"data\.json, record 2: an image tag"):
        open_tokens(source, turn_tokenizer())
    with pytest.raises(ValueError, match=r"data\.json, record 2: an image tag"):
        open_tokens(source, turn_tokenizer())
