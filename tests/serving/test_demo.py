"""The demo in a browser: a real page, served by a real process, over a real API; nothing leaves the machine."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from servers import MODEL
from toy import ROOT

from open_flamingo.instruction_tuning.data.prompts import format_prompt
from open_flamingo.instruction_tuning.generation import Settings

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
PATIENCE = 30
LONG = "Why?"
RAMBLING = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "max_new_token": 1024}
"""How the toy model answers at length."""
SPY = """
import os, sys
def hook(event, args):
    if event in ("socket.getaddrinfo", "socket.connect", "socket.sendto"):
        target = args[0] if event == "socket.getaddrinfo" else args[1]
        with open(os.environ["SPY_LOG"], "a") as log:
            print(target[0] if isinstance(target, tuple) else target, file=log)
sys.addaudithook(hook)
"""
"""As `sitecustomize`, writes down every address that a Python process looks up or speaks to."""
GROWTH = """() => {
    window.lengths = [];
    new MutationObserver(() => {
        const bots = document.querySelectorAll('#chat [data-testid=bot]');
        if (bots.length) window.lengths.push(bots[bots.length - 1].innerText.length);
    }).observe(document.querySelector('#chat'), {subtree: true, childList: true, characterData: true});
}"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def demo(folder: Path, api: str, *flags: str) -> Iterator[str]:
    """The address of a demo that logs to `folder / "log"`, and to `folder / "spy"` whom its process speaks to."""
    (folder / "sitecustomize.py").write_text(SPY)
    port = free_port()
    environment = os.environ | {"PYTHONPATH": str(folder), "SPY_LOG": str(folder / "spy")}
    command = [sys.executable, "gradio_demo.py", "--api", api, "--port", str(port), "--log_dir", str(folder / "log")]
    with subprocess.Popen([*command, *flags], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline()
            assert f"http://127.0.0.1:{port}" in said
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
    assert process.returncode == 0


@contextmanager
def forwarded(port: int, url: str) -> Iterator[None]:
    """What is said to a port is said to the server at `url`."""

    class Forward(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.forward(None)

        def do_POST(self) -> None:
            self.forward(self.rfile.read(int(self.headers["Content-Length"])))

        def forward(self, body: bytes | None) -> None:
            answer = httpx.request(self.command, url + self.path, content=body, timeout=PATIENCE)
            self.send_response(answer.status_code)
            self.end_headers()
            self.wfile.write(answer.content)

    with ThreadingHTTPServer(("127.0.0.1", port), Forward) as forwarder:
        threading.Thread(target=forwarder.serve_forever).start()
        yield
        forwarder.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def url(folder, server) -> Iterator[str]:
    """The demo that most tests share; at its end it has spoken to this machine only."""
    with demo(folder, server.url, "--log_images") as url:
        yield url
    spoken_to = set((folder / "spy").read_text().split())
    assert "127.0.0.1" in spoken_to
    assert spoken_to <= {"127.0.0.1", "localhost", "::1", "None"}


@pytest.fixture
def visit(browser) -> Iterator[Callable[[str], Page]]:
    """Opens a page in a fresh browser window, and in the end sees that it asked nobody else for anything."""
    contexts, hosts = [], set()

    def visit(url: str) -> Page:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 900}, service_workers="block"))
        page = contexts[-1].new_page()
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page.goto(url)
        page.locator("#state .pill.ok, #state .pill.down").wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert hosts <= {"127.0.0.1", None}


@pytest.fixture
def page(visit, url) -> Page:
    return visit(url)


@pytest.fixture(scope="module")
def rambling_seed(inferencer) -> int:
    """A seed with which the toy model talks for long."""
    prompt = inferencer.encode(format_prompt(LONG, inferencer.template))
    settings = Settings(max_new_tokens=400, do_sample=True, temperature=5.0)
    answers = inferencer.answer([prompt] * 16, settings, range(16))
    return max(range(16), key=lambda seed: answers[seed].tokens)


def greedy(page: Page) -> None:
    page.get_by_label("do_sample").uncheck()


def attach(page: Page, *paths: Path) -> None:
    """Put images into the box, as the file dialog does."""
    there = page.locator("#box .thumbnail-item").count()
    page.locator("#box input[type=file]").set_input_files(list(paths))
    expect(page.locator("#box .thumbnail-item")).to_have_count(there + len(paths))


def ask(page: Page, text: str) -> None:
    page.locator("#box textarea").fill(text)
    page.locator("#box textarea").press("Enter")


def ask_at_length(page: Page, seed: int) -> None:
    """Ask for an answer that takes seconds."""
    for name, value in RAMBLING.items():
        page.get_by_label(f"number input for {name}").fill(str(value))
    page.get_by_label("seed").fill(str(seed))
    ask(page, LONG)


def edit(page: Page, text: str) -> None:
    """Change the first question."""
    page.get_by_role("button", name="Edit").first.click()
    page.locator("#chat textarea").fill(text)
    page.get_by_role("button", name="Submit").first.click()


def expect_answers(page: Page, *answers: str) -> None:
    """Wait until the conversation holds these answers, and may go on."""
    expect(page.locator("#chat [data-testid=bot]")).to_have_text(list(answers), timeout=PATIENCE * 1000)
    expect(page.locator("#box [data-testid=submit-button]")).to_be_visible(timeout=PATIENCE * 1000)


def logged(folder: Path) -> list[dict]:
    """The lines of the log."""
    return [json.loads(line) for path in (folder / "log").glob("*.jsonl") for line in path.read_text().splitlines()]


def test_an_image_is_uploaded_and_a_second_turn_goes_on_from_the_first(page, pictures, folder):
    greedy(page)
    attach(page, pictures / "red.png")
    ask(page, "Which colour?")
    expect_answers(page, "red")
    page.get_by_role("button", name="The exact prompt").click()
    expect(page.locator("#prompt textarea")).to_have_value("### Human: <image>Which colour?\n### Assistant: ")
    expect(page.locator("#prompt-note")).to_contain_text("1 image;")
    ask(page, "What is the sun?")
    expect(page.locator("#chat [data-testid=bot]")).to_have_count(2)
    expect(page.locator("#prompt textarea")).to_have_value(
        re.compile(
            r"### Human: <image>Which colour\?\n### Assistant: red.*\n### Human: What is the sun\?\n### Assistant: "
        )
    )
    expect(page.locator("#box [data-testid=submit-button]")).to_be_visible()
    first, second = logged(folder)[-2:]
    assert (first["question"], first["answer"], first["turn"]) == ("Which colour?", "red", 0)
    assert (second["question"], second["turn"]) == ("What is the sun?", 1)
    assert first["conversation"] == second["conversation"]
    assert (first["finish_reason"], first["parameters"]["do_sample"]) == ("stop", False)
    (image,) = first["images"]
    assert (folder / "log" / image["file"]).read_bytes() == (pictures / "red.png").read_bytes()


def test_several_images_go_with_one_question(page, pictures):
    greedy(page)
    attach(page, pictures / "red.png", pictures / "blue.png")
    ask(page, "Which colour?")
    expect_answers(page, "red blue")
    expect(page.locator("#chat .user-row img")).to_have_count(2)


def test_an_edited_question_keeps_its_image_and_is_answered_anew(page, pictures, folder):
    greedy(page)
    attach(page, pictures / "green.png")
    ask(page, "What is the sun?")
    expect(page.locator("#chat [data-testid=bot]")).to_have_count(1)
    expect(page.locator("#box [data-testid=submit-button]")).to_be_visible()
    edit(page, "Which colour?")
    expect_answers(page, "green")
    expect(page.locator("#chat .user-row img")).to_have_count(1)
    assert [row["turn"] for row in logged(folder)[-2:]] == [0, 0]


def test_a_question_that_is_edited_to_nothing_stays_as_it_was(page):
    greedy(page)
    ask(page, "What is the sun?")
    expect_answers(page, "A star.")
    edit(page, " ")
    expect(page.get_by_text("Write a question: this one has no image.")).to_be_visible()
    expect(page.locator("#chat [data-testid=user]")).to_have_text("What is the sun?")
    expect_answers(page, "A star.")


def test_retry_asks_the_last_question_again_with_another_seed(page, folder):
    ask(page, "What is the sun?")
    expect_answers(page, "A star.")
    page.get_by_role("button", name="Retry").click()
    page.wait_for_function(
        "seed => !document.querySelector('#summary').innerText.includes(seed)",
        arg=str(logged(folder)[-1]["parameters"]["seed"]),
    )
    expect_answers(page, "A star.")
    first, second = logged(folder)[-2:]
    assert first["question"] == second["question"] == "What is the sun?"
    assert first["parameters"]["seed"] != second["parameters"]["seed"]


def test_an_answer_grows_until_it_is_stopped_and_stays(page, rambling_seed, folder):
    page.evaluate(GROWTH)
    ask_at_length(page, rambling_seed)
    page.wait_for_function("new Set(window.lengths).size > 4")
    page.locator("#box .stop-button").click()
    expect(page.locator("#box [data-testid=submit-button]")).to_be_visible()
    assert "stopped" in page.locator("#summary").inner_text()
    row = logged(folder)[-1]
    assert (row["finish_reason"], row["parameters"]["seed"]) == ("stopped", rambling_seed)
    assert row["answer"]
    assert page.locator("#chat [data-testid=bot]").count() == 1


def test_a_new_chat_forgets_even_an_answer_under_way(page, rambling_seed, folder):
    page.evaluate(GROWTH)
    ask_at_length(page, rambling_seed)
    page.wait_for_function("window.lengths.length > 1")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#chat .message-row")).to_have_count(0)
    expect(page.locator("#summary")).to_have_text("")
    greedy(page)
    ask(page, "What is the sun?")
    expect(page.locator("#chat [data-testid=bot]")).to_have_text(["A star."])
    expect(page.locator("#box [data-testid=submit-button]")).to_be_visible()
    first, second = logged(folder)[-2:]
    assert (first["finish_reason"], second["finish_reason"]) == ("stopped", "stop")
    assert first["conversation"] != second["conversation"]
    assert second["turn"] == 0


def test_an_example_goes_with_the_question(page):
    for count in (1, 2):
        page.locator("#examples button").first.click()
        expect(page.locator("#box .thumbnail-item")).to_have_count(count)


def test_what_is_no_image_is_said_and_the_question_stays(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    attach(page, tmp_path / "broken.png")
    ask(page, "Which colour?")
    expect(page.get_by_text("broken.png is not an image that can be read")).to_be_visible()
    expect(page.locator("#box textarea")).to_have_value("Which colour?")
    expect(page.locator("#chat .message-row")).to_have_count(0)


def test_a_link_to_a_picture_elsewhere_is_never_followed(page):
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        ask(page, f"![x](http://127.0.0.1:{elsewhere.getsockname()[1]}/x.png) What is the sun?")
        expect(page.locator("#chat [data-testid=bot]")).to_have_count(1)
        expect(page.locator("#box [data-testid=submit-button]")).to_be_visible()
        elsewhere.settimeout(0.5)
        with pytest.raises(TimeoutError):
            elsewhere.accept()


def test_an_api_that_is_down_is_said_and_asked_again_once_it_is_up(visit, tmp_path, server):
    port = free_port()
    with demo(tmp_path, f"http://127.0.0.1:{port}", "--no_log") as url:
        page = visit(url)
        expect(page.locator("#state")).to_have_text("not running")
        greedy(page)
        ask(page, "What is the sun?")
        expect(page.locator("#chat")).to_contain_text(f"No API answers at http://127.0.0.1:{port}")
        expect(page.locator("#chat")).to_contain_text("uvicorn api:app")
        with forwarded(port, server.url):
            expect(page.locator("#state")).to_have_text(MODEL, timeout=PATIENCE * 1000)
            page.get_by_role("button", name="Retry").click()
            expect_answers(page, "A star.")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 900)])
def test_all_that_matters_is_on_the_first_screen(page, width, height):
    page.set_viewport_size({"width": width, "height": height})
    for control in ("#chat", "#box", "#examples", "#clear", "#state"):
        box = page.locator(control).bounding_box()
        assert min(box["x"], box["y"]) >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= height
