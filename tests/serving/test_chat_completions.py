"""What OpenAI's client gets from a server: the same answers as from the model itself, in OpenAI's objects and errors."""

import json

import openai
import pytest
from servers import MODEL, user

from instruction_dataset.records import Record, image_tag
from open_flamingo.instruction_tuning.data.prompts import format_prompt
from open_flamingo.instruction_tuning.generation import Prompt, Settings
from open_flamingo.serving.chat import event
from open_flamingo.src.factory import MEDIA_TOKEN

TEMPLATE = "guanaco-no-prompt"
SUN = {"role": "user", "content": "What is the sun?"}
GO_ON = {"role": "user", "content": "Go on until you stop."}
DRAWN = {"temperature": 3.0, "top_p": 0.95, "max_tokens": 24}
DRAWN_SETTINGS = {"temperature": 3.0, "top_p": 0.95, "max_new_token": 24, "top_k": 0, "no_repeat_ngram_size": 0}


@pytest.fixture
def ask(client):
    """Asks for one greedy answer, unless it is said otherwise."""

    def ask(*messages, **settings):
        return client.chat.completions.create(model=MODEL, messages=messages, **({"temperature": 0} | settings))

    return ask


def texts(completion) -> list[str]:
    """The answers of a completion."""
    return [choice.message.content for choice in completion.choices]


@pytest.mark.parametrize("colors", [["red"], ["blue", "red"], ["green", "green", "blue"]])
def test_greedy_answers_about_images_are_the_models_own(ask, inferencer, pictures, colors):
    paths = [pictures / f"{color}.png" for color in colors]
    prompt = format_prompt(MEDIA_TOKEN * len(colors) + "Which colour?", TEMPLATE)
    own, _ = inferencer(prompt, list(map(str, paths)), 24, num_beams=1, do_sample=False, no_repeat_ngram_size=0)
    assert texts(ask(user(*paths, "Which colour?"), max_tokens=24)) == own


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_drawn_answers_are_the_models_own_for_the_same_seed(ask, inferencer, pictures, seed):
    prompt = format_prompt(f"{MEDIA_TOKEN}Which colour?", TEMPLATE)
    own, _ = inferencer(prompt, [str(pictures / "red.png")], num_beams=1, seed=seed, **DRAWN_SETTINGS)
    asked = user(pictures / "red.png", "Which colour?")
    assert texts(ask(asked, seed=seed, **DRAWN)) == texts(ask(asked, seed=seed, **DRAWN)) == own


def test_several_answers_have_the_seeds_that_follow(ask, inferencer):
    prompt = format_prompt(SUN["content"], TEMPLATE)
    own = [inferencer(prompt, num_beams=1, seed=seed, **DRAWN_SETTINGS)[0][0] for seed in (5, 6, 7)]
    completion = ask(SUN, n=3, seed=5, **DRAWN)
    assert texts(completion) == own
    assert [choice.index for choice in completion.choices] == [0, 1, 2]


def test_without_a_seed_answers_differ(ask):
    assert len({texts(ask(SUN, **DRAWN))[0] for _ in range(4)}) > 1


def test_a_conversation_of_several_turns_and_images_is_what_training_builds(ask, inferencer, pictures):
    red, blue = pictures / "red.png", pictures / "blue.png"
    messages = [
        {"role": "system", "content": "Be brief."},
        user(red, "Which colour?"),
        {"role": "assistant", "content": "red"},
        user("And of", blue, "?"),
    ]
    record = Record(f"Be brief.\n{image_tag('r')}Which colour?", "red", ((f"And of{image_tag('b')}?", "-"),))
    ids, _ = inferencer.turns.question(record)
    settings = Settings(max_new_tokens=24, num_beams=2, no_repeat_ngram_size=2)
    (own,) = inferencer.answer([Prompt(ids, [red, blue])], settings)
    completion = ask(*messages, max_completion_tokens=24, extra_body={"num_beams": 2, "no_repeat_ngram_size": 2})
    assert texts(completion) == [own.text]
    assert completion.usage.prompt_tokens == len(ids)


def test_an_image_that_is_spelled_out_in_a_text_is_text(ask, inferencer):
    text = "Which colour is <image> in <|endofchunk|>?"
    (own,) = inferencer.answer([Prompt(inferencer.turns.question(Record(text, "-"))[0])], Settings(max_new_tokens=8))
    assert texts(ask({"role": "user", "content": text}, max_tokens=8)) == [own.text]


@pytest.mark.parametrize(
    "settings", [{}, {"seed": 3, **DRAWN}, {"seed": 3, "n": 2, **DRAWN}], ids=["greedy", "drawn", "two"]
)
def test_a_stream_says_what_the_whole_answer_says(ask, pictures, settings):
    asked = user(pictures / "blue.png", pictures / "red.png", "Which colour?")
    whole = ask(asked, **settings)
    *chunks, last = ask(asked, stream=True, stream_options={"include_usage": True}, **settings)
    heard = dict.fromkeys(range(len(whole.choices)), "")
    endings = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        heard[choice.index] += choice.delta.content or ""
        endings |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
    assert [*heard.values()] == texts(whole)
    assert endings == {choice.index: choice.finish_reason for choice in whole.choices}
    assert (last.choices, last.usage) == ([], whole.usage)


def test_a_stream_says_who_speaks_first_and_has_a_chunk_for_each_piece(ask):
    first, *others = ask(SUN, stream=True)
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert len(others) > 2
    assert all(chunk.usage is None for chunk in others)


def test_an_event_is_one_line_for_whoever_reads_lines():
    (line, _) = event({"text": "a\u2028b\x85c\u2029"}).splitlines()
    assert json.loads(line.removeprefix("data: ")) == {"text": "a\u2028b\x85c\u2029"}


def test_beams_are_streamed_whole(ask):
    pieces = [
        chunk.choices[0].delta.content for chunk in ask(SUN, stream=True, max_tokens=24, extra_body={"num_beams": 2})
    ]
    assert list(filter(None, pieces)) == ["A star."]


@pytest.mark.parametrize("stop", ["stop", ["nothing", "stop"]])
def test_an_answer_ends_before_a_stop_string(ask, stop):
    completion = ask(GO_ON, stop=stop)
    assert (texts(completion), completion.choices[0].finish_reason) == (["I"], "stop")


def test_an_answer_ends_where_the_model_goes_on_with_a_turn_of_the_users(ask):
    assert texts(ask(GO_ON)) == ["I stop."]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_that_is_cut_says_so_and_usage_counts_its_tokens(ask, inferencer, name):
    completion = ask(SUN, **{name: 2})
    assert completion.choices[0].finish_reason == "length"
    prompt = len(inferencer.turns.question(Record(SUN["content"], "-"))[0])
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (prompt, 2, prompt + 2)


@pytest.mark.parametrize(
    "same",
    [{"temperature": 0}, {"temperature": 1.5, "extra_body": {"do_sample": False}}, {"top_p": 0, "temperature": 1}],
)
def test_greedy_is_greedy_however_it_is_said(ask, same):
    assert texts(ask(SUN, seed=1, **same)) == ["A star."]


def test_the_models_are_the_one_that_is_served(client):
    assert [model.id for model in client.models.list()] == [MODEL]


def test_what_changes_no_answer_is_left_out(ask):
    harmless = {"user": "me", "store": False, "frequency_penalty": 0, "tool_choice": "none", "logprobs": False}
    assert texts(ask(SUN, response_format={"type": "text"}, **harmless)) == ["A star."]


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"n": 9}, None),
        ({"extra_body": {"num_beams": 40}}, "num_beams"),
        ({"extra_body": {"top_k": "many"}}, "top_k"),
    ],
    ids=str,
)
def test_a_parameter_that_cannot_be_followed_is_a_bad_request_that_names_it(ask, settings, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(SUN, **settings)
    assert (caught.value.type, caught.value.param) == ("invalid_request_error", param)
    assert param is None or param in caught.value.message


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages: List should have at least 1 item"),
        ([SUN, {"role": "assistant", "content": "A star."}], "the last message must be the user's"),
        ([{"role": "assistant", "content": "A star."}, SUN], "the dialogue begins with the assistant"),
        ([SUN, {"role": "assistant", "content": " "}, SUN], "the answer of turn 1 is empty"),
        ([{"role": "tool", "content": "A star."}], r"messages\[0\].role"),
        ([{"role": "user", "content": None}], r"messages\[0\].content"),
        ([{"role": "user", "content": [{"type": "sound"}]}], "its type must be 'text' or 'image_url'"),
        ([{"role": "user", "content": "<img_path>/etc/passwd<img_path>"}], "holds '<img_path>'"),
        ([{"role": "user", "content": "word " * 9000}], "the prompt is too long"),
        ([{"role": "user", "content": "word" * 99_000}], "the prompt is too long: it has more than the 4096 tokens"),
    ],
    ids=range(10),
)
def test_messages_that_are_no_conversation_are_a_bad_request(ask, messages, message):
    with pytest.raises(openai.BadRequestError, match=message):
        ask(*messages)


def test_an_image_that_cannot_be_read_is_a_bad_request_that_names_it_by_number(ask, pictures):
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    asked = user(pictures / "red.png", "Which colour?")
    asked["content"].append(broken)
    with pytest.raises(openai.BadRequestError, match="image 2 is not an image that can be read"):
        ask(asked)


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt", messages=[SUN])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_key_is_asked_for_where_one_is_set(started):
    with started(api_key="secret") as server:
        with pytest.raises(openai.AuthenticationError):
            server.client(api_key="guess").models.list()
        assert [model.id for model in server.client(api_key="secret").models.list()] == [MODEL]
