"""The events of the demo's page, without a browser."""

import asyncio
import shutil
from dataclasses import asdict

import gradio as gr
import pytest

from demo.chat import Parameters, Reply
from demo.client import Api
from demo.log import TurnLog
from demo.page import Page, put_back

GREEDY = Parameters(do_sample=False, max_new_token=24)
TAB = gr.Request(session_hash="tab")
HALF = "What is the sun? \ud83d"
"""A question that ends in half of a surrogate pair, as a broken paste does."""


@pytest.fixture
def api(server) -> Api:
    return Api(server.url)


def text(value: str) -> dict:
    return {"type": "text", "text": value}


def user(*parts: dict) -> dict:
    return {"role": "user", "content": list(parts)}


def edited(number: int, value: str) -> gr.EditData:
    """What the browser tells of a message that was changed."""
    return gr.EditData(None, {"index": number, "previous_value": "", "value": value})


def last_shown(page: Page, *parts: dict) -> tuple:
    """What a page shows at the end, once a question is answered."""

    async def read() -> tuple:
        steps = page.answer([user(*parts)], "talk", TAB, *asdict(GREEDY).values())
        return [step async for step in steps][-1]

    return asyncio.run(read())


def test_an_answer_that_cannot_be_logged_stays_and_the_next_question_can_be_asked(api, tmp_path, caplog):
    page = Page(api, TurnLog(tmp_path / "log"), tmp_path)
    shutil.rmtree(tmp_path / "log")
    chat, box, *_ = last_shown(page, text("What is the sun?"))
    assert chat[-1]["content"] == [text("A star.")]
    assert (box["submit_btn"], box["stop_btn"], page.replies) == (True, False, {})
    assert "an exchange is not in the log: " in caplog.text


def test_a_failure_that_nobody_foresaw_is_raised_when_the_tab_is_free_again(api, tmp_path):
    page = Page(api, None, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        last_shown(page, {"type": "file", "file": {"path": str(tmp_path / "gone.png")}}, text("Which colour?"))
    assert page.replies == {}


def test_half_a_character_is_asked_as_a_question_mark(api, tmp_path):
    page = Page(api, None, tmp_path)
    _, (put,) = page.put({"text": HALF, "files": []}, [], TAB)
    assert page.edit([put], [put], edited(0, HALF), TAB) == [put]
    chat, *_ = last_shown(page, *put["content"])
    assert [message["role"] for message in chat if "metadata" not in message] == ["user", "assistant"]
    assert chat[0]["content"] == [text("What is the sun? ?")]


def test_an_edit_that_is_refused_leaves_everything_as_it_was(api, tmp_path):
    page = Page(api, None, tmp_path)
    page.replies["tab"] = under_way = Reply()
    answered = {"role": "assistant", "content": [text("A star.")]}
    image = {"type": "file", "file": {"path": "red.png"}}
    seen = [user(text("What is the sun?")), answered, user(image, text("Which colour?"))]
    shown = [user(text(" ")), answered, user(text("Which colour?")), answered]
    with pytest.raises(gr.Error, match="Write a question: this one has no image"):
        page.edit(shown, seen, edited(0, " "), TAB)
    assert page.replies == {"tab": under_way}
    assert put_back(shown, seen) == [*seen, answered]


def test_a_question_may_be_edited_to_its_image_alone(api, tmp_path):
    seen = [user({"type": "file", "file": {"path": "red.png"}}, text("Which colour?"))]
    (changed,) = Page(api, None, tmp_path).edit([user(text(" "))], seen, edited(0, " "), TAB)
    assert changed == user({"path": "red.png"})
