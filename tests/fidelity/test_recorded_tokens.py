"""Token ids and target masks of 2023, byte-level BPE and LLaMA's sentencepiece: packed, cut, augmented, at inference."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
from recordings import GOLDENS, learnt_in_2023, read_json
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from instruction_dataset.records import Record, parse_record
from open_flamingo.instruction_tuning.data.conversation import Conversation, Turn, TurnTokenizer
from open_flamingo.instruction_tuning.data.packing import fill
from open_flamingo.src.factory import END_OF_CHUNK_TOKEN, MEDIA_TOKEN, add_special_tokens

RAW = read_json("shared", "data", "samples.json")
SAMPLES = [parse_record(raw) for raw in RAW]
SPELLS_SPECIAL_TOKENS = 2
"""The sample whose answer spells special tokens out, which 2023 made special: its recorded answer is taken as it is."""
LEGACY = 5
"""The sample with an `instruction` field."""
AS_FURTHER_TURN = {LEGACY: Record(RAW[LEGACY]["input"], RAW[LEGACY]["output"])}
"""As a further turn it lost that field in 2023."""
IMAGE_SLOTS = 3
DRAWN = {0: [4, 0, 4, 6], 1: [2, 5, 4, 2], 2: [1, 3, 4, 5]}
"""The samples that 2023 drew for each augmented item: its own, then those of the further turns, read off its text.

The last of item 1 is the one that its images kept out: of the samples, only number 2 has as many.
"""


def attended_ids(item: dict[str, Any]) -> list[int]:
    """The ids of a recorded item without its padding."""
    return [token for token, attended in zip(item["input_ids"], item["attention_mask"], strict=True) if attended]


@dataclass
class Tokens:
    """What one tokenizer of 2023 made of the samples under one template, and ours."""

    kind: str
    template: str
    file: str
    folder: str

    @cached_property
    def everything(self) -> dict[str, Any]:
        return read_json("shared", "data", f"{self.file}.json")

    @property
    def record(self) -> dict[str, Any]:
        return self.everything[f"{self.kind}/{self.template}"]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer = AutoTokenizer.from_pretrained(GOLDENS / self.folder)
        add_special_tokens(tokenizer)
        return tokenizer

    @cached_property
    def turns(self) -> TurnTokenizer:
        return TurnTokenizer(self.tokenizer, self.tokenizer.convert_tokens_to_ids(MEDIA_TOKEN), self.template)

    @property
    def end_of_chunk(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(END_OF_CHUNK_TOKEN)

    def turn(self, index: int, *, first: bool = True, record: Record | None = None) -> Turn:
        """A sample (or `record` in its place) as we tokenize it, its prompt in the form of 2023."""
        (turn,) = self.turns.turns(record or SAMPLES[index], first=first)
        answer = turn.answer
        if index == SPELLS_SPECIAL_TOKENS:
            answer = self.recorded_answer(index)
        return Turn(self.prompt_in_recorded_form(turn.prompt), answer, turn.images)

    def recorded_answer(self, index: int) -> list[int]:
        """The recorded ids of a sample's answer that we have too."""
        sample = self.record["samples"][index]
        ids = sample["input_ids"]
        return [ids[i] for i in self.kept(ids) if sample["target_mask"][i]]

    def conversation(self, *indices: int) -> Conversation:
        """Samples as the turns of one conversation."""
        joined = Conversation()
        for i, index in enumerate(indices):
            joined.extend([self.turn(index, first=i == 0)])
        return joined

    def prompt_in_recorded_form(self, ids: list[int]) -> list[int]:
        """Our ids of a prompt without what 2023 left out."""
        return ids

    def assert_equal(self, ours: Conversation, item: dict[str, Any]) -> None:
        """Ids, what is learnt, and the labels of 2023 agree."""
        attended = item.get("attention_mask", [1] * len(item["input_ids"]))
        rows = zip(item["input_ids"], item["target_mask"], item.get("labels", item["input_ids"]), attended, strict=True)
        ids, learnt, labels = zip(*(row[:3] for row in rows if row[3]), strict=True)
        kept = self.kept(list(ids))
        assert ours.ids == [ids[i] for i in kept]
        assert ours.supervised == [bool(learnt[i]) for i in kept]
        if "labels" in item:
            learnt_then = learnt_in_2023(ours.ids, ours.supervised, self.turns.media_token_id, self.end_of_chunk)
            expected = [token if is_learnt else -100 for token, is_learnt in zip(ours.ids, learnt_then, strict=True)]
            assert expected == [labels[i] for i in kept]

    def kept(self, ids: list[int]) -> list[int]:
        """The positions of recorded ids that we have too."""
        return list(range(len(ids)))


class LlamaTokens(Tokens):
    """LLaMA's slow tokenizer put `<s>` before each prompt and answer, and dropped a space that ended a piece of text.

    That is all that differs: a piece ends before an `<image>` or with the prompt, and our ids hold the "▁" of a space
    that ends it. At the prompt's end the recorded tokenizer.model itself drops it (`remove_extra_whitespaces`), as its
    slow tokenizer ran sentencepiece's normalizer and the fast one of today does not; before `<image>` it was stripped.
    """

    @property
    def space(self) -> int:
        return self.tokenizer.convert_tokens_to_ids("▁")

    def prompt_in_recorded_form(self, ids: list[int]) -> list[int]:
        ends = {len(ids), *(i for i, token in enumerate(ids) if token == self.turns.media_token_id)}
        return [token for i, token in enumerate(ids) if not (token == self.space and i + 1 in ends)]

    def kept(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [i for i, token in enumerate(ids) if token != bos or i == 0]


BPE = ("tokenization", "llama/lm")
SENTENCEPIECE = ("tokenization_llama_sp", "shared/sp_tokenizer")
TEMPLATES = ["guanaco", "guanaco-no-prompt"]
ALL = {f"bytebpe/{template}": Tokens("bytebpe", template, *BPE) for template in TEMPLATES} | {
    f"llama/{template}": LlamaTokens("llama_sp_slow", template, *SENTENCEPIECE) for template in TEMPLATES
}


@pytest.fixture(params=ALL)
def tokens(request) -> Tokens:
    return ALL[request.param]


@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_ids_and_mask_of_a_sample_are_the_recorded_ones(tokens, index):
    recorded = tokens.record["samples"][index]
    ours = tokens.conversation(index)
    tokens.assert_equal(ours, recorded)
    assert [f"IMG/{path}" for path in ours.images] == recorded["img_paths"]


def test_ids_and_mask_of_all_samples_as_turns_are_the_recorded_ones(tokens):
    tokens.assert_equal(tokens.conversation(*range(len(SAMPLES))), tokens.record["multiturn_all"])


def test_a_sample_cut_to_its_length_is_the_recorded_one(tokens):
    recorded = tokens.record["truncated"]
    ours = tokens.conversation(recorded["sample_index"])
    ours.cut(len(tokens.kept(attended_ids(recorded))), tokens.turns.media_token_id)
    tokens.assert_equal(ours, recorded)


@pytest.mark.parametrize("place", range(len(SAMPLES)))
def test_items_of_the_dataset_are_the_recorded_ones_without_their_padding(tokens, place):
    recorded = tokens.record["getitem"][place]
    ours = tokens.conversation(recorded["sample_index"])
    ours.cut(len(tokens.kept(attended_ids(recorded))), tokens.turns.media_token_id)
    tokens.assert_equal(ours, recorded)
    assert len(ours.images) == IMAGE_SLOTS - len(recorded["zero_image_slots"])


@pytest.mark.parametrize("item", DRAWN)
def test_augmented_items_are_the_recorded_ones_given_the_same_draws(tokens, item):
    augmented = tokens.record["augmented"]
    first, *further = DRAWN[item]
    assert augmented["all_samples_order"][augmented["items"][item]["index"]] == first
    turns = [tokens.turn(first)]
    drawn = [tokens.turn(index, first=False, record=AS_FURTHER_TURN.get(index)) for index in further]
    max_length = len(augmented["items"][item]["input_ids"])
    slots = augmented["max_img"] - len(turns[0].images)
    chosen = fill(max_length - len(turns[0]), slots, list(map(len, drawn)), [len(turn.images) for turn in drawn])
    ours = Conversation()
    ours.extend([*turns, *(drawn[i] for i in chosen)])
    ours.cut(max_length, tokens.turns.media_token_id)
    tokens.assert_equal(ours, augmented["items"][item])


def test_the_prompt_at_inference_is_the_recorded_one():
    recorded = ALL["bytebpe/guanaco"].everything["test_mode"]
    turn = ALL["bytebpe/guanaco"].turn(SPELLS_SPECIAL_TOKENS)
    assert [turn.prompt] == recorded["input_ids"]
    assert [f"IMG/{path}" for path in turn.images] == recorded["img_paths"]


def test_a_legacy_record_reads_the_same_each_time_and_not_longer_as_in_2023():
    (once, length), (twice, _), _ = ALL["bytebpe/guanaco"].everything["legacy_instruction_mutation"]
    assert twice != once
    for _ in range(3):
        assert parse_record(RAW[LEGACY]).input == once
        assert len(ALL["bytebpe/guanaco"].conversation(LEGACY).ids) == length


@pytest.fixture
def llama() -> LlamaTokens:
    return ALL["llama/guanaco"]


def test_special_ids_of_the_sentencepiece_tokenizer_are_the_recorded_ones(llama):
    recorded, tokenizer = llama.everything["ids"], llama.tokenizer
    ours = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert ours == [recorded[name] for name in ("bos", "eos", "pad")]
    for name, token in (("eoc", END_OF_CHUNK_TOKEN), ("image", MEDIA_TOKEN)):
        assert [tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids(token)] == recorded[name]


def test_probes_of_the_sentencepiece_tokenizer_equal_the_recorded_ones_but_for_spaces_that_end_a_piece(llama):
    for text, recorded in llama.everything["ids"]["encode_probe"].items():
        ours = llama.turns.prompt(text.split(MEDIA_TOKEN))
        assert llama.prompt_in_recorded_form(ours) == recorded, text


@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_each_space_that_ends_a_piece_is_one_token_that_2023_did_not_have(llama, index):
    pieces = llama.record["samples"][index]["prompt"].split(MEDIA_TOKEN)
    (turn,) = llama.turns.turns(SAMPLES[index], first=True)
    ours = turn.prompt
    assert len(ours) - len(llama.turn(index).prompt) == sum(piece.endswith(" ") for piece in pieces)
