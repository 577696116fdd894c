"""Answers that stream, are drawn by seed, stop at strings, reuse what earlier turns computed, and log-likelihoods."""

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import inputs_seen
from torch import Tensor
from toy import FURTHER_TURN, GOLDENS
from transformers import DynamicCache

from instruction_dataset.dialogue import ASSISTANT, NEXT_TURN
from open_flamingo.instruction_tuning.data.images import load_image, open_image
from open_flamingo.instruction_tuning.data.prompts import format_prompt
from open_flamingo.instruction_tuning.generation import INCOMPLETE, NoRepeat, Prompt, Settings, sure_part, until_stop
from open_flamingo.instruction_tuning.inferencer import Inferencer
from open_flamingo.instruction_tuning.prefixes import Prefixes, cut, shared_length
from open_flamingo.instruction_tuning.watch import Listener
from open_flamingo.src.factory import MEDIA_TOKEN

TEMPLATE = "guanaco-no-prompt"
GREEDY = Settings(max_new_tokens=40)
DRAWN = Settings(max_new_tokens=12, do_sample=True, temperature=5.0, top_k=50, top_p=0.95, stop=())
GO_ON = format_prompt("Go on until you stop.", TEMPLATE)
COLOUR = format_prompt(f"{MEDIA_TOKEN}Which colour?", TEMPLATE)
SUN = format_prompt("What is the sun?", TEMPLATE)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def inferencer(toy_run) -> Inferencer:
    return Inferencer.from_pretrained(str(toy_run / "checkpoint_0.pt"))


@pytest.fixture(scope="module")
def afresh(toy_run) -> Inferencer:
    """The same model, which holds no conversations."""
    return Inferencer.from_pretrained(str(toy_run / "checkpoint_0.pt"), conversations=0)


@pytest.fixture(scope="module")
def padded_with_eos(toy_run) -> Inferencer:
    """The same model, whose tokenizer has no token for padding alone."""
    inferencer = Inferencer.from_pretrained(str(toy_run / "checkpoint_0.pt"))
    inferencer.tokenizer.pad_token = inferencer.tokenizer.eos_token
    return inferencer


@pytest.fixture(scope="module")
def opt(tower) -> Inferencer:
    """A model that has learnt a vector for each position."""
    return Inferencer(None, str(GOLDENS / "opt" / "lm"), None, str(tower), cross_attn_every_n_layers=1)


@pytest.fixture
def red(pictures) -> str:
    return str(pictures / "red.png")


@pytest.fixture
def blue(pictures) -> str:
    return str(pictures / "blue.png")


def ask(inferencer: Inferencer, prompts: Sequence[Prompt], how: Settings, *args) -> list[str]:
    return [answer.text for answer in inferencer.answer(prompts, how, *args)]


# where an answer ends


def test_an_answer_says_how_long_it_is_and_whether_it_was_cut(inferencer):
    asked = [inferencer.encode(SUN)]
    (whole,) = inferencer.answer(asked, GREEDY)
    assert whole.text == "A star."
    assert whole.tokens == len(inferencer.turns.encode("A star.")) + 1
    assert not whole.is_cut
    (cut,) = inferencer.answer(asked, replace(GREEDY, max_new_tokens=2))
    assert (cut.tokens, cut.is_cut) == (2, True)
    (last,) = inferencer.answer(asked, replace(GREEDY, max_new_tokens=whole.tokens))
    assert not last.is_cut


@pytest.mark.parametrize("num_beams", [1, 2])
def test_generation_ends_at_a_stop_string_and_not_later(inferencer, num_beams):
    how = replace(GREEDY, num_beams=num_beams)
    (answer,) = inferencer.answer([inferencer.encode(GO_ON)], how)
    assert answer.text == "I stop."
    assert answer.tokens < len(inferencer.turns.encode(FURTHER_TURN))
    assert not answer.is_cut
    assert ask(inferencer, [inferencer.encode(GO_ON)], replace(how, stop=("op",))) == ["I st"]


def test_rows_of_a_batch_stop_each_at_its_own_place(inferencer):
    asked = [inferencer.encode(prompt) for prompt in (GO_ON, SUN, GO_ON)]
    assert ask(inferencer, asked, GREEDY) == ["I stop.", "A star.", "I stop."]
    assert [answer.tokens for answer in inferencer.answer(asked, GREEDY)] == [
        inferencer.answer([prompt], GREEDY)[0].tokens for prompt in asked
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k must not be below 0"),
        ({"stop": ("",)}, "a stop string must not be empty"),
        ({"num_return_sequences": 2}, "several answers to a prompt need sampling or beams"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences is at most num_beams"),
    ],
)
def test_settings_that_no_model_can_follow_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(GREEDY, **change)


def test_more_tokens_than_learnt_positions_are_refused_and_others_are_not(opt, inferencer):
    asked = opt.encode("What is the sun?")
    assert opt.positions is not None
    fits = replace(GREEDY, max_new_tokens=opt.positions - len(asked.ids))
    assert opt.answer([asked], fits)[0].tokens <= fits.max_new_tokens
    with pytest.raises(ValueError, match=f"does not fit into the {opt.positions} positions of this language model"):
        opt.answer([asked], replace(fits, max_new_tokens=fits.max_new_tokens + 1))
    assert inferencer.positions is None


def test_an_empty_prompt_is_answered_by_a_model_whose_texts_begin_with_no_token_of_their_own(inferencer):
    assert inferencer.turns.bos == []
    assert inferencer.encode("").ids == [inferencer.turns.eos]
    assert len(inferencer.answer([inferencer.encode("")], GREEDY)) == 1


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_padding_is_no_text_that_may_not_come_up_again(padded_with_eos, red, size, num_beams):
    inferencer = padded_with_eos
    how = replace(GREEDY, max_new_tokens=12, no_repeat_ngram_size=size, num_beams=num_beams, stop=())
    asked = [inferencer.encode(SUN), inferencer.encode(COLOUR, [red]), inferencer.encode(""), inferencer.encode(GO_ON)]
    assert len({len(prompt.ids) for prompt in asked}) > 2
    assert inferencer.answer(asked, how) == [inferencer.answer([prompt], how)[0] for prompt in asked]


def test_no_n_gram_of_a_row_comes_up_again_and_padding_bans_nothing():
    text, scores = [3, 1, 2, 1], torch.zeros(1, 5)
    for size, banned in ((1, {1, 2, 3}), (2, {2}), (3, set()), (9, set())):
        for padding, pad in ((0, 0), (3, 0), (3, 1), (1, 2)):
            ids = torch.tensor([[pad] * padding + text])
            left = NoRepeat(size, torch.tensor([padding]))(ids, scores)
            assert {*left.isinf().nonzero()[:, 1].tolist()} == banned


# draws


def test_an_answer_depends_on_its_seed_and_not_on_its_batch(inferencer, red, blue):
    asked = [inferencer.encode(COLOUR, [red]), inferencer.encode(GO_ON), inferencer.encode(COLOUR, [blue])]
    together = ask(inferencer, asked, DRAWN, [3, 4, 5])
    assert together == [ask(inferencer, [prompt], DRAWN, [seed])[0] for prompt, seed in zip(asked, [3, 4, 5])]
    assert together != ask(inferencer, asked, DRAWN, [6, 7, 8])


def test_several_answers_to_a_prompt_have_the_seeds_that_follow(inferencer, red):
    asked = [inferencer.encode(COLOUR, [red]), inferencer.encode(GO_ON)]
    several = ask(inferencer, asked, replace(DRAWN, num_return_sequences=3), [10, 20])
    expected = [ask(inferencer, [asked[i // 3]], DRAWN, [(10, 20)[i // 3] + i % 3])[0] for i in range(6)]
    assert several == expected
    assert len(set(several)) > 2


def test_a_thousand_draws_follow_the_models_probabilities(inferencer):
    asked = inferencer.encode(SUN)
    how = replace(DRAWN, max_new_tokens=1, temperature=4.0, top_k=3, top_p=1.0, num_return_sequences=1000)
    drawn = ask(inferencer, [asked], how, [0])
    with torch.no_grad():
        logits = inferencer.model(None, torch.tensor([asked.ids])).logits[0, -1]
    likeliest = logits.topk(3)
    chances = (likeliest.values / 4).softmax(-1)
    for token, chance in zip(likeliest.indices, chances, strict=True):
        text = inferencer.tokenizer.decode(token, skip_special_tokens=True).strip()
        assert abs(drawn.count(text) / 1000 - chance.item()) < 0.05  # three standard deviations


# streams


def test_a_stream_is_the_answer_in_pieces(inferencer, red):
    for prompt, images in ((COLOUR, [red]), (GO_ON, []), (SUN, [])):
        pieces = list(inferencer.stream(prompt, images, GREEDY))
        assert "".join(pieces) == ask(inferencer, [inferencer.encode(prompt, images)], GREEDY)[0]
    assert len(list(inferencer.stream(SUN, [], GREEDY))) > 1


def test_a_drawn_stream_follows_its_seed(inferencer):
    asked = [inferencer.encode(GO_ON)]
    for seed in range(5):
        assert "".join(inferencer.stream(GO_ON, [], DRAWN, seed)) == ask(inferencer, asked, DRAWN, [seed])[0]


def test_a_stream_that_is_closed_ends_the_generation(inferencer):
    endless = replace(DRAWN, max_new_tokens=100_000)
    stream = inferencer.stream(GO_ON, [], endless, seed=1)
    next(stream)
    threads = threading.active_count()
    stream.close()
    assert threading.active_count() == threads - 1


def test_a_stream_raises_what_went_wrong(inferencer):
    with pytest.raises(ValueError, match=r"image nowhere\.png does not exist"):
        list(inferencer.stream(COLOUR, ["nowhere.png"], GREEDY))


def test_a_batch_is_heard_row_by_row_and_rows_that_nobody_wants_or_that_want_less_end(inferencer):
    asked = [inferencer.encode(prompt) for prompt in (GO_ON, SUN, GO_ON, GO_ON)]
    asked[3] = asked[3]._replace(max_new_tokens=2)
    heard, finished = {0: "", 1: ""}, []

    def hear(row: int) -> Callable[[str], None]:
        return lambda piece: heard.update({row: heard[row] + piece})

    answers = inferencer.answer(
        asked,
        GREEDY,
        hear={0: hear(0), 1: hear(1)},
        wanted=lambda row: row != 2,
        finished=lambda row, answer: finished.append((row, answer)),
    )
    assert heard == {0: "I stop.", 1: "A star."}
    assert [answers[0].tokens > 3, answers[2].tokens, answers[3].tokens, answers[3].is_cut] == [True, 1, 2, True]
    assert finished == sorted(enumerate(answers), key=lambda row: row[1].tokens)


def test_images_may_come_as_the_tower_takes_them(inferencer, red):
    image = inferencer.look(open_image(Path(red)))
    asked = inferencer.encode(COLOUR, [red])
    assert inferencer.answer([asked._replace(images=[image])], GREEDY) == inferencer.answer([asked], GREEDY)


def test_beams_cannot_be_listened_to(inferencer):
    with pytest.raises(ValueError, match="stream with num_beams 1"):
        list(inferencer.stream(SUN, [], replace(GREEDY, num_beams=2)))


class Characters:
    """A tokenizer of UTF-8 bytes."""

    def batch_decode(self, ids: Tensor, **_options) -> list[str]:
        return [bytes(row.tolist()).decode(errors="replace") for row in ids]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text("ab#: \né猫", max_size=30), st.lists(st.text("a#: \né猫", min_size=1, max_size=4), max_size=3))
def test_what_was_said_is_never_taken_back(text, stop):
    ends = [end for end in range(len(text)) if any(string in text[:end] for string in stop)]
    text = text[: min(ends, default=len(text))]  # generation goes on no further
    heard = []
    listener = Listener(Characters(), stop, 0, {0: heard.append})
    ids = list(text.encode())
    for end in range(1, len(ids) + 1):
        listener(torch.tensor([ids[:end]]), None)
        assert until_stop(text, stop).startswith("".join(heard))
    listener.say(0, until_stop(text, stop))
    assert "".join(heard) == until_stop(text, stop)


@pytest.mark.parametrize(
    ("text", "sure"),
    [
        (" Two cats", "Two cats"),
        ("Two cats \n", "Two cats"),
        ("Two cats\n##", "Two cats"),
        ("Two cats\n### Human: and", "Two cats"),
        (f"Two caf{INCOMPLETE}", "Two caf"),
    ],
)
def test_only_what_stays_is_said(text, sure):
    assert sure_part(text, ("### Human:",)) == sure


def test_a_stop_string_is_not_said_while_bytes_of_its_characters_are_still_to_come():
    assert sure_part(f"x 你{INCOMPLETE}", ("你好",)) == "x"
    assert sure_part("x 你们", ("你好",)) == "x 你们"


# conversations and images


def turns_of(count: int, first: str) -> list[str]:
    """Prompts of a conversation that grows by a turn each."""
    prompts, text = [], first
    for _ in range(count):
        prompts.append(text)
        text += "red" + NEXT_TURN + f"{MEDIA_TOKEN}Which colour?" + ASSISTANT
    return prompts


def test_a_conversation_that_grows_computes_only_what_is_new(inferencer, afresh, red, blue):
    images, known = [red, blue, red, blue], 0
    for number, prompt in enumerate(turns_of(4, COLOUR), start=1):
        asked = inferencer.encode(prompt, images[:number])
        with inputs_seen([inferencer.model.lang_encoder.get_input_embeddings()]) as runs:
            ours = ask(inferencer, [asked], GREEDY)
        assert ours == ask(afresh, [asked], GREEDY)
        assert runs[0].shape[1] <= len(asked.ids) - known + 1  # the space before an answer may join its first word
        known = len(asked.ids)


def test_logits_after_a_prefix_are_those_of_the_whole_text(inferencer, afresh, red, blue):
    prompts = turns_of(3, COLOUR)
    for number, prompt in enumerate(prompts, start=1):
        asked = inferencer.encode(prompt, [red, blue, red][:number])
        scores = []
        for model in (inferencer, afresh):
            text = model._text(asked.ids, model._encode_images(asked.images)[1])
            ids = torch.tensor([asked.ids])
            with torch.inference_mode():
                output = model.model.generate(
                    None,
                    ids,
                    torch.ones_like(ids),
                    latents=model._encode_images(asked.images)[0],
                    max_new_tokens=4,
                    do_sample=False,
                    eos_token_id=model.ends,
                    pad_token_id=model.tokenizer.pad_token_id,
                    past_key_values=model.prefixes.take(text),
                    output_logits=True,
                    return_dict_in_generate=True,
                )
            model.prefixes.keep([*text, *output.sequences[0, len(text) :].tolist()], output.past_key_values)
            scores.append(torch.stack(output.logits))
        torch.testing.assert_close(*scores, **CLOSE)


def test_another_image_in_the_same_text_is_computed_afresh(inferencer, red, blue):
    for picture, colour in ((red, "red"), (blue, "blue"), (red, "red")):
        assert ask(inferencer, [inferencer.encode(COLOUR, [picture])], GREEDY) == [colour]


def test_the_same_question_again_gives_the_same_answer(inferencer):
    assert [ask(inferencer, [inferencer.encode(SUN)], GREEDY) for _ in range(3)] == [["A star."]] * 3


def test_random_conversations_with_branches_equal_those_afresh(toy_run, afresh, red, blue):
    inferencer = Inferencer(str(toy_run / "checkpoint_0.pt"), conversations=3)
    rng = random.Random(0)
    starts = [(COLOUR, [red]), (COLOUR, [blue]), (SUN, []), (GO_ON, [])]
    for _ in range(25):
        prompt, images = rng.choice(starts)
        for _ in range(rng.randrange(3)):
            prompt += (
                rng.choice(["red", "no"]) + NEXT_TURN + rng.choice([f"{MEDIA_TOKEN}Which colour?", "Why?"]) + ASSISTANT
            )
            images = [*images, *[rng.choice([red, blue])] * (prompt.count(MEDIA_TOKEN) - len(images))]
        asked = inferencer.encode(prompt, images)
        assert ask(inferencer, [asked], GREEDY) == ask(afresh, [asked], GREEDY)


def test_conversations_that_take_turns_each_go_on_from_where_they_were(toy_run, afresh, red, blue):
    inferencer = Inferencer(str(toy_run / "checkpoint_0.pt"), conversations=2)
    first, second = turns_of(2, COLOUR), turns_of(2, format_prompt(f"{MEDIA_TOKEN}And which colour is this?", TEMPLATE))
    asked = [
        inferencer.encode(prompt, images)
        for prompt, images in (
            (first[0], [red]),
            (second[0], [red]),
            (first[1], [red, blue]),
            (second[1], [red, red]),
        )
    ]
    computed = []
    for prompt in asked:
        with inputs_seen([inferencer.model.lang_encoder.get_input_embeddings()]) as runs:
            ours = ask(inferencer, [prompt], GREEDY)
        computed.append(runs[0].shape[1])
        assert ours == ask(afresh, [prompt], GREEDY)
    lengths = [len(prompt.ids) for prompt in asked]
    alike = shared_length(asked[0].ids, asked[1].ids)
    assert 0 < alike < min(lengths) / 2
    assert computed[:2] == [lengths[0], lengths[1] - alike]
    for earlier, later in ((0, 2), (1, 3)):
        assert (
            computed[later] <= lengths[later] - lengths[earlier] + 1
        )  # the space before an answer may join its first word


def test_no_more_caches_are_held_than_asked_for_with_that_of_the_answer_under_way():
    for size in range(4):
        prefixes = Prefixes(size)
        for start in range(6):
            text = [0, *range(10 * start, 10 * start + 9)]
            under_way = prefixes.take(text) or DynamicCache()
            assert len(prefixes._caches) <= max(size - 1, 0)
            new = torch.zeros(1, 1, len(text) - under_way.get_seq_length(), 1)
            under_way.update(new, new, 0)
            prefixes.keep(text, under_way)
        assert len(prefixes._caches) == size


def test_a_cut_leaves_the_cache_whole_and_copies_no_tensor():
    whole = DynamicCache()
    for layer in range(2):
        whole.update(torch.randn(1, 2, 5, 3), torch.randn(1, 2, 5, 3), layer)
    keys = [layer.keys for layer in whole.layers]
    begun = cut(whole, 3)
    assert [layer.keys.data_ptr() for layer in begun.layers] == [tensor.data_ptr() for tensor in keys]
    for layer in range(2):
        begun.update(torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 4, 3), layer)
    assert (begun.get_seq_length(), whole.get_seq_length()) == (7, 5)
    assert all(layer.keys is tensor for layer, tensor in zip(whole.layers, keys, strict=True))
    assert all(
        layer.keys[..., :3, :].equal(tensor[..., :3, :]) for layer, tensor in zip(begun.layers, keys, strict=True)
    )


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), max_size=8))
def test_the_shared_length_is_that_of_the_longest_common_beginning(a, b):
    length = shared_length(a, b)
    assert a[:length] == b[:length]
    assert a[: length + 1] != b[: length + 1] or length == min(len(a), len(b))


@pytest.mark.parametrize("how", [GREEDY, replace(GREEDY, num_beams=3), replace(DRAWN, num_return_sequences=4)])
def test_an_image_is_encoded_once_however_often_it_comes_up(toy_run, how, red, blue):
    inferencer = Inferencer(str(toy_run / "checkpoint_0.pt"))
    asked = [
        inferencer.encode(turns_of(3, COLOUR)[2], [red, blue, red]),
        inferencer.encode(COLOUR, [blue]),
    ]
    with inputs_seen([inferencer.model.perceiver]) as encoded:
        inferencer.answer(asked, how)
        inferencer.answer(asked, how)
    assert [len(images) for images in encoded] == [2]


def test_text_alone_never_reaches_the_tower(inferencer):
    with inputs_seen([inferencer.model.perceiver]) as encoded:
        inferencer.answer([inferencer.encode(SUN)], GREEDY)
    assert not encoded


def test_an_image_token_is_never_generated(inferencer):
    drawn = inferencer.answer(
        [inferencer.encode(GO_ON)] * 20, replace(DRAWN, temperature=1000.0, top_k=0, top_p=1.0, max_new_tokens=30)
    )
    assert not any(MEDIA_TOKEN in answer.text for answer in drawn)


# log-likelihoods


def test_a_score_is_the_log_likelihood_of_the_whole_answer(inferencer, red):
    candidates = ["red", "blue", "a red square on the left", "", "green"]
    prompt = inferencer.encode(COLOUR, [red])
    image = load_image(red, inferencer.transform)[None, None]
    scores = inferencer.score(COLOUR, [red], candidates)
    for candidate, score in zip(candidates, scores, strict=True):
        answer = [*inferencer.turns.encode(candidate), inferencer.turns.eos]
        ids = torch.tensor([[*prompt.ids, *answer]])
        with torch.no_grad():
            logits = inferencer.model(image, ids).logits.log_softmax(-1)
        places = torch.arange(len(prompt.ids) - 1, ids.shape[1] - 1)
        expected = logits[0, places, ids[0, places + 1]].sum().item()
        assert score == pytest.approx(expected, abs=1e-3)
    assert max(zip(scores, candidates))[1] == "red"


def test_candidates_of_one_token_are_scored_as_among_others_and_none_have_no_scores(inferencer, red):
    among_others = inferencer.score(COLOUR, [red], ["a red square", "", ""])
    assert inferencer.score(COLOUR, [red], [""]) == pytest.approx(among_others[1:2])
    assert inferencer.score(COLOUR, [red], [*["red"] * 16, ""])[16] == pytest.approx(among_others[1])
    assert inferencer.score(COLOUR, [red], []) == []


def test_a_candidate_that_learnt_positions_have_no_room_for_is_refused(opt):
    asked = opt.encode("What is the sun?")
    room = opt.positions - len(asked.ids)
    longest = next(" a" * n for n in range(room, 0, -1) if len(opt.turns.encode(" a" * n)) < room)
    assert len(opt.score("What is the sun?", [], ["b", longest])) == 2
    with pytest.raises(ValueError, match=f"does not fit into the {opt.positions} positions of this language model"):
        opt.score("What is the sun?", [], ["b", longest + " a" * 2])


def test_many_candidates_are_scored_with_the_prompt_computed_once(inferencer, red):
    candidates = [f"a {i} red" for i in range(40)]
    with inputs_seen([inferencer.model.lang_encoder.get_input_embeddings()]) as runs:
        scores = inferencer.score(COLOUR, [red], candidates)
    assert [len(ids) for ids in runs] == [1, 16, 16, 8]
    assert max(ids.shape[1] for ids in runs[1:]) < runs[0].shape[1]
    one_by_one = [inferencer.score(COLOUR, [red], [candidate])[0] for candidate in candidates]
    assert scores == pytest.approx(one_by_one, abs=1e-3)
