"""The demo without its page: what it asks of a real API, what it understands of the answers, what it sends and logs."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import datetime

import httpx
import pytest
from PIL import Image
from servers import MODEL
from toy import ROOT, question

from demo.chat import Parameters, Question, Reply, Turn, asked, before_answer, note, request_body, split
from demo.client import Api, ApiError, events, explain
from demo.log import TurnLog
from demo.pictures import EXAMPLES, SIDE, data_url, examples, prepare

GREEDY = Parameters(do_sample=False, max_new_token=24)
COLOUR = question("red")["input"].rpartition(">")[2]
NOWHERE = "http://127.0.0.1:9"


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


def test_a_key_is_sent_and_asked_for_where_it_is_wanting(started):
    with started(api_key="open sesame") as server:
        assert asyncio.run(Api(server.url, "open sesame").ready()) == MODEL
        assert "FLAMINGO_API_KEY" in str(failure(Api(server.url).ready()))
        assert "open sesame" not in repr(Api(server.url, "open sesame"))


def test_what_the_api_refuses_is_said_in_its_words(api):
    reply = answer(api, Question("What is the sun?"), parameters=Parameters(max_new_token=100_000))
    assert reply.finish_reason == "error"
    assert reply.error.startswith("The API refused the question: ")
    assert "max_tokens" in reply.error or "1024" in reply.error


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


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", "nonsense"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match="--api"):
        Api(url)


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


def test_small_images_are_sent_as_they_are_and_large_ones_smaller(tmp_path, pictures):
    sent = prepare(pictures / "red.png", tmp_path)
    assert sent.read_bytes() == (pictures / "red.png").read_bytes()
    assert data_url(sent).startswith("data:image/png;base64,")
    Image.new("RGBA", (3000, 1500), (0, 0, 0, 0)).save(tmp_path / "large.png")
    with Image.open(prepare(tmp_path / "large.png", tmp_path)) as small:
        assert small.size == (SIDE, SIDE // 2)
        assert small.getpixel((5, 5)) == (255, 255, 255)


def test_an_image_that_lies_on_its_side_is_sent_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (2000, 1000)).save(tmp_path / "side.jpg", exif=exif)
    with Image.open(prepare(tmp_path / "side.jpg", tmp_path)) as upright:
        assert upright.size == (SIDE // 2, SIDE)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"<svg/>"])
def test_what_is_no_image_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.png is not an image that can be read"):
        prepare(tmp_path / "x.png", tmp_path)


def test_the_examples_are_small_and_come_with_scikit_image(tmp_path):
    found = examples(tmp_path)
    assert [about for _, about in found] == list(EXAMPLES.values())
    assert all(path.stat().st_size < 512 * 1024 for path, _ in found)


@pytest.fixture
def rows(tmp_path) -> Iterator:
    """The log in `tmp_path / "log"`, read back."""

    def read() -> list[dict]:
        (path,) = (tmp_path / "log").glob("*.jsonl")
        assert path.stem == f"{datetime.now().astimezone():%Y-%m-%d}"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    return read


def test_the_log_has_a_line_per_exchange_and_images_by_digest(tmp_path, pictures, rows):
    log = TurnLog(tmp_path / "log")
    log.add([pictures / "red.png"], question="Größe?\n", answer="1")
    log.add([], question="\udc80", answer="2")
    assert [(row["question"], row["answer"], len(row["images"])) for row in rows()] == [
        ("Größe?\n", "1", 1),
        ("?", "2", 0),
    ]
    assert set(rows()[0]["images"][0]) == {"sha256"}


def test_the_log_keeps_images_where_asked_to(tmp_path, pictures, rows):
    log = TurnLog(tmp_path / "log", keeps_images=True)
    for _ in range(2):
        log.add([pictures / "red.png"], question="Which?")
    (kept,) = (tmp_path / "log" / "images").iterdir()
    assert rows()[0]["images"] == [{"sha256": kept.stem, "file": f"images/{kept.name}"}]
    assert kept.read_bytes() == (pictures / "red.png").read_bytes()


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_demo_needs_no_model_in_its_process():
    code = "import sys, gradio_demo, demo.page; print([m for m in sys.modules if m.split('.')[0] in %r])"
    ended = run_python("-c", code % (("torch", "transformers", "open_flamingo"),))
    assert ended.stdout == "[]\n", ended.stderr


def test_help_teaches_without_loading_gradio():
    ended = run_python("-X", "importtime", "gradio_demo.py", "--help")
    assert ended.returncode == 0
    assert "uvicorn api:app" in ended.stdout
    assert all(flag in ended.stdout for flag in ("--api ", "--api_key", "--host", "--port", "--log_dir", "--no_log"))
    assert " gradio\n" not in ended.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--api", "nonsense"], "--api 'nonsense' is no address"), (["--log_dir", "setup.py"], "setup.py")],
)
def test_a_flag_that_cannot_be_is_refused_in_a_sentence(flags, said):
    ended = run_python("gradio_demo.py", *flags)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
