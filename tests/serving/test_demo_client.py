"""The demo without a browser: what it asks of a real API, and what it understands of the answers."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from servers import MODEL
from toy import question

from demo.chat import Parameters, Question, Reply, Turn, asked, before_answer, note, request_body, split
from demo.client import Api, ApiError, events, explain
from demo.pictures import prepare

GREEDY = Parameters(do_sample=False, max_new_token=24)
COLOUR = question("red")["input"].rpartition(">")[2]
NOWHERE = "http://127.0.0.1:9"
MODELS = json.dumps({"data": [{"id": MODEL}]})


def answer(api: Api, question: Question, turns=(), parameters=GREEDY) -> Reply:
    """The answer to a question, when it is whole."""

    async def ask() -> Reply:
        reply = Reply()
        await reply.start(api, turns, question, parameters)
        return reply

    return asyncio.run(ask())


def failure(awaitable) -> ApiError:
    """What the API fails with."""
    with pytest.raises(ApiError) as caught:
        asyncio.run(awaitable)
    return caught.value


@contextmanager
def saying(answers: dict[str, str], *headers: tuple[str, str]) -> Iterator[Api]:
    """A server that has an answer for each path, whatever it is asked."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            for header in headers:
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(answers[self.path].encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as listener:
        threading.Thread(target=listener.serve_forever).start()
        try:
            yield Api(f"http://127.0.0.1:{listener.server_port}")
        finally:
            listener.shutdown()


@pytest.fixture
def api(server) -> Api:
    return Api(server.url)


def test_the_model_is_found_and_ready(api):
    assert asyncio.run(api.ready()) == MODEL


def test_an_answer_about_images_is_the_models_own(api, pictures, inferencer, tmp_path):
    paths = [pictures / "red.png", pictures / "blue.png"]
    sent = tuple(prepare(path, tmp_path) for path in paths)
    own, _ = inferencer(
        f"### Human: <image><image>{COLOUR}\n### Assistant: ", list(map(str, paths)), 24, 1, do_sample=False
    )
    reply = answer(api, Question(COLOUR, sent))
    assert [reply.text] == own == ["red blue"]
    assert (reply.finish_reason, reply.error, reply.model) == ("stop", None, MODEL)


def test_a_drawn_answer_is_repeated_by_its_seed(api):
    drawn = Parameters(temperature=2.0, seed=4, max_new_token=30, top_k=0, top_p=1.0)
    first, second = (answer(api, Question("Why?"), parameters=drawn) for _ in range(2))
    assert first.text == second.text
    assert "seed 4" in first.summary(drawn)


def test_beams_are_asked_for(api):
    assert (
        answer(api, Question("What is the sun?"), parameters=Parameters(num_beams=3, do_sample=False)).text == "A star."
    )


def test_the_exact_prompt_holds_all_turns(api, pictures):
    turns = [Turn(Question(COLOUR, (pictures / "red.png",)), "red")]
    body = request_body(MODEL, turns, Question("What is the sun?"), GREEDY)
    prompt = asyncio.run(api.prompt(body))
    assert prompt.text.startswith("### Human: <image>Which colour?\n### Assistant: red")
    assert prompt.text.endswith("### Human: What is the sun?\n### Assistant: ")
    assert prompt.images == 1


def test_an_answer_that_is_cut_says_so(api):
    short = Parameters(do_sample=False, max_new_token=1)
    reply = answer(api, Question("What is the sun?"), parameters=short)
    assert reply.finish_reason == "length"
    assert reply.summary(short).endswith("cut at max_new_token")
    assert reply.summary(short).startswith("1 token ·")


def test_an_api_that_is_down_is_named_with_what_to_do():
    reply = answer(Api(NOWHERE), Question("Hello?"))
    assert reply.error is not None
    assert NOWHERE in reply.error
    assert "uvicorn api:app" in reply.error
    assert reply.messages()[-1]["metadata"]["title"] == "No answer"


@pytest.mark.parametrize("models", ['{"data": []}', '{"data": null}', '{"data": [7]}', "[]", "{}", "7", "<html>"])
def test_another_server_at_the_address_is_named_as_such(models):
    with saying({"/v1/models": models, "/prompt": models}) as api:
        for awaitable in (api.model(), api.ready(), api.prompt({})):
            error = failure(awaitable)
            assert f"What answers at {api.url} is not the API of this project" in str(error)
            assert error.short == "no API there"


def test_an_answer_packed_wrongly_is_a_strangers():
    with saying({"/v1/models": MODELS}, ("Content-Encoding", "gzip")) as api:
        assert failure(api.model()).short == "no API there"


@pytest.mark.parametrize("chunk", ["{nope", "[1]", "7", '{"choices": [{}]}', '{"choices": [7]}', '{"usage": 7}'])
def test_an_answer_that_loses_its_shape_is_not_taken_for_whole(chunk):
    stream = f"data: {json.dumps({'choices': [{'delta': {'content': 'A '}}]})}\n\ndata: {chunk}\n\ndata: [DONE]\n\n"
    with saying({"/v1/models": MODELS, "/v1/chat/completions": stream}) as api:
        reply = answer(api, Question("What is the sun?"))
    assert (reply.text, reply.finish_reason) == ("A ", "error")
    assert "something that is no answer" in reply.error
    assert reply.messages()[-1]["metadata"]["title"] == "The answer is not whole"


def test_a_key_is_sent_and_asked_for_where_it_is_wanting(started):
    with started(api_key="open sesame") as server:
        assert asyncio.run(Api(server.url, "open sesame").ready()) == MODEL
        assert "FLAMINGO_API_KEY" in str(failure(Api(server.url).ready()))
        assert "open sesame" not in repr(Api(server.url, "open sesame"))


def test_what_the_api_refuses_is_said_in_its_words(api):
    reply = answer(api, Question("What is the sun?"), parameters=Parameters(max_new_token=100_000))
    assert reply.finish_reason == "error"
    assert reply.error.startswith("The API refused the question: ")
    assert "max_new_token" in reply.error
    assert "max_tokens" not in reply.error


@pytest.mark.parametrize(
    ("status", "headers", "said", "is_passing"),
    [
        (429, {"Retry-After": "3"}, "busy with other questions. Try again in 3 seconds.", True),
        (429, {"Retry-After": "1"}, "Try again in 1 second.", True),
        (429, {}, "Try again in a moment.", True),
        (503, {"Retry-After": "5"}, "not ready", True),
        (504, {}, "lower max_new_token", True),
        (500, {}, "failed (500)", False),
        (404, {}, "not the API of this project", False),
    ],
)
def test_each_failure_has_its_sentence(status, headers, said, is_passing):
    error = explain(httpx.Response(status, headers=headers, request=httpx.Request("POST", "http://127.0.0.1:8000/x")))
    assert said in str(error)
    assert error.is_passing == is_passing


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1:8000", "ftp://127.0.0.1", "http://", "nonsense", "http://[::1", "http://127.0.0.1:8000\n"),
        *("http://127.0.0.1:abc", "http://127.0.0.1:99999", "http://127.0.0.1:-1", "http://xn--."),
    ],
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match="is no address: write it as"):
        Api(url)


@pytest.mark.parametrize("key", ["größe", "a\nb", "\x7f"])
def test_a_key_that_no_header_can_carry_is_refused(key):
    with pytest.raises(ValueError, match="the key may hold printable ASCII only"):
        Api(NOWHERE, key)


def test_events_come_whole_however_they_are_cut():
    async def lines() -> AsyncIterator[str]:
        for line in (
            ": a comment",
            "data: one",
            "",
            "data:two",
            "event: x",
            "",
            "data: a",
            "data: b",
            "",
            "",
            "data: end",
        ):
            yield line

    async def read() -> list[str]:
        return [data async for data in events(lines())]

    assert asyncio.run(read()) == ["one", "two", "a\nb", "end"]


def said(role: str, *parts: dict, title: str | None = None) -> dict:
    """A message as the page hands it back."""
    return {"role": role, "content": list(parts), "metadata": title and {"title": title}}


def text(value: str) -> dict:
    return {"type": "text", "text": value}


def test_what_was_asked_in_vain_and_notices_are_no_turns():
    history = [
        said("user", {"type": "file", "file": {"path": "a.png"}}, text("one")),
        said("assistant", text("1")),
        said("user", text("two")),
        said("assistant", text("down"), title="No answer"),
        said("user", text("three")),
    ]
    turns, question = split(history)
    assert [(turn.question.text, turn.answer) for turn in turns] == [("one", "1")]
    assert [path.name for path in turns[0].question.images] == ["a.png"]
    assert question == Question("three")
    assert split(history[:4])[1] is None
    assert before_answer(history[:4]) == history[:3]
    assert before_answer([]) == []


def test_a_question_is_its_images_then_its_text(tmp_path):
    message = asked(Question("Which?", (tmp_path / "a.png",)))
    assert message["content"] == [{"path": str(tmp_path / "a.png")}, text("Which?")]
    assert note("No answer", "why")["metadata"] == {"title": "No answer"}
