"""The page at work: what happens when something on it is pressed."""

import asyncio
import logging
import random
import uuid
from collections.abc import AsyncIterator
from dataclasses import fields, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from demo.chat import Message, Parameters, Question, Reply, asked, before_answer, request_body, split
from demo.client import Api, ApiError
from demo.layout import PROMPT_HINT, Controls, lay_out, pill
from demo.log import TurnLog
from demo.pictures import examples, prepare

logger = logging.getLogger("demo")

TICK = 0.05
"""Seconds between two looks at an answer that grows."""
POLL = 3.0
"""Seconds between two looks for an API that is not there."""
DRAWN = ("temperature", "top_k", "top_p")
"""The parameters that matter only where answers are drawn."""
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Of every event: other programs are offered none of them, they have the API."""
FREE: dict[str, Any] = HIDDEN | {"concurrency_limit": None}
"""Of events that wait for the API: it is the one to say when it is busy."""


class Page:
    """The demo of one API server; `folder` holds the images while it runs."""

    def __init__(self, api: Api, log: TurnLog | None, folder: Path) -> None:
        self.api, self.log, self.folder = api, log, folder
        self.examples = examples(folder)
        self.replies: dict[str, Reply] = {}
        """The answer under way of each browser tab."""

    def build(self) -> gr.Blocks:
        """The page, to be launched."""
        with gr.Blocks(title="Instruct-Flamingo", fill_width=True, analytics_enabled=False) as blocks:
            on = lay_out(self.examples)
            conversation = gr.State(new_conversation)
            is_shown = gr.State(False)
            timer = gr.Timer(POLL, active=False)
            self._asking(on, conversation, is_shown, timer)
            self._prompt_panel(on, is_shown)
            on.box.stop(self.stop, **FREE)
            on.clear.click(
                self.forget, None, [on.chat, on.box, on.summary, conversation, on.prompt_note, on.prompt], **FREE
            )
            on.gallery.select(self.take_example, [on.box], [on.box, on.gallery], **HIDDEN)
            dim(on)
            gr.on([blocks.load, timer.tick], self.look, None, [on.state, timer], **FREE)
            blocks.unload(self.leave)
        return blocks

    def _asking(self, on: Controls, conversation: gr.State, is_shown: gr.State, timer: gr.Timer) -> None:
        """A question is put, put again or changed; then it is answered, and its prompt shown."""
        controls = [on.parameters[f.name] for f in fields(Parameters)]
        seen = gr.State([])
        edited = on.chat.edit(self.edit, [on.chat, seen], [on.chat], **HIDDEN)
        edited.failure(put_back, [on.chat, seen], [on.chat], **HIDDEN)
        for event in (
            on.box.submit(self.put, [on.box, on.chat], [on.box, on.chat], **HIDDEN),
            on.chat.retry(self.again, [on.chat], [on.chat], **HIDDEN),
            edited,
        ):
            answered = event.success(
                self.answer, [on.chat, conversation, *controls], [on.chat, on.box, on.summary, seen], **FREE
            )
            answered.then(self.look, None, [on.state, timer], **FREE)
            event.success(self.show_prompt, [is_shown, on.chat], [on.prompt_note, on.prompt], **FREE)

    def _prompt_panel(self, on: Controls, is_shown: gr.State) -> None:
        """The prompt is asked for only while its panel is open."""
        opened = on.prompt_panel.expand(lambda: True, None, [is_shown], **HIDDEN)
        opened.then(self.show_prompt, [is_shown, on.chat], [on.prompt_note, on.prompt], **FREE)
        on.prompt_panel.collapse(lambda: False, None, [is_shown], **HIDDEN)

    def put(self, typed: dict[str, Any], history: list[Message], request: gr.Request) -> tuple[Any, list[Message]]:
        """Move what was typed into the conversation; where it cannot be asked, all stays as it is."""
        text = question_text(typed["text"])
        if session(request) in self.replies:
            raise refusal("An answer is still under way: stop it, or wait for its end.")
        if not text and not typed["files"]:
            raise refusal("Write a question, or add an image.")
        try:
            images = tuple(prepare(Path(file), self.folder) for file in typed["files"])
        except ValueError as error:
            raise refusal(f"{error}.") from error
        return {"text": "", "files": []}, [*history, asked(Question(text, images))]

    def again(self, history: list[Message], request: gr.Request) -> list[Message]:
        """Take back the last answer, so that its question is open."""
        self.leave(request)
        return before_answer(history)

    def edit(
        self, history: list[Message], seen: list[Message], change: gr.EditData, request: gr.Request
    ) -> list[Message]:
        """Change the text of a question, and take back all that came after it.

        The browser drops the question's images while it changes the text: they are those of the conversation `seen` last.
        """
        number = change.index if isinstance(change.index, int) else change.index[0]
        _, question = split(seen[: number + 1])
        images = () if question is None else question.images
        text = question_text(change.value)
        if not text and not images:
            raise refusal("Write a question: this one has no image.")
        self.leave(request)
        return [*history[:number], asked(Question(text, images))]

    async def answer(
        self, history: list[Message], conversation: str, request: gr.Request, *values: Any
    ) -> AsyncIterator[tuple[Any, Any, Any, Any]]:
        """Answer the question that ends a conversation: the chat, the box, the summary, and what was seen."""
        turns, question = split(history)
        if question is None:
            yield gr.skip(), gr.skip(), gr.skip(), gr.skip()
            return
        parameters = parameters_of(values)
        reply = self.replies[session(request)] = Reply()
        task = reply.start(self.api, turns, question, parameters)
        yield history, gr.update(submit_btn=False, stop_btn=True), "", history
        try:
            said = ""
            while not (await asyncio.wait([task], timeout=TICK))[0]:
                if reply.text != said:
                    said = reply.text
                    yield [*history, *reply.messages()], gr.skip(), gr.skip(), gr.skip()
        finally:
            # also where the tab was closed in the middle
            reply.stop()
            await asyncio.wait([task])
            is_wanted = self.replies.get(session(request)) is reply
            if is_wanted:
                self.replies.pop(session(request))
            self._log(conversation, len(turns), question, parameters, reply)
        if is_wanted:
            box = gr.update(submit_btn=True, stop_btn=False)
            yield [*history, *reply.messages()], box, escape(reply.summary(parameters)), gr.skip()
        if not task.cancelled():
            task.result()  # raises what nobody foresaw

    def stop(self, request: gr.Request) -> None:
        """End the answer under way as it stands; it stays."""
        if (reply := self.replies.get(session(request))) is not None:
            reply.stop()

    def leave(self, request: gr.Request) -> None:
        """End the answer under way, which nobody wants any more."""
        if (reply := self.replies.pop(session(request), None)) is not None:
            reply.stop()

    def forget(self, request: gr.Request) -> tuple[Any, ...]:
        """An empty conversation."""
        self.leave(request)
        box = gr.update(value={"text": "", "files": []}, submit_btn=True, stop_btn=False)
        return [], box, "", new_conversation(), PROMPT_HINT, ""

    def take_example(self, typed: dict[str, Any], chosen: gr.SelectData) -> tuple[dict[str, Any], Any]:
        """Add an example to what is being written; it can be chosen again."""
        path, _ = self.examples[chosen.index]
        return {"text": typed["text"], "files": [*typed["files"], str(path)]}, gr.update(selected_index=None)

    async def look(self) -> tuple[str, Any]:
        """What the API is doing; while it is not ready, that is looked at again and again."""
        try:
            return pill("ok", await self.api.ready()), gr.Timer(active=False)
        except ApiError as error:
            return pill("wait" if error.is_passing else "down", error.short), gr.Timer(active=True)

    async def show_prompt(self, is_shown: bool, history: list[Message]) -> tuple[Any, Any]:
        """The exact prompt of the latest question."""
        turns, question = split(before_answer(history))
        if not is_shown or question is None:
            return gr.skip(), gr.skip()
        try:
            body = await asyncio.to_thread(request_body, await self.api.model(), turns, question, Parameters())
            prompt = await self.api.prompt(body)
        except ApiError as error:
            return escape(str(error)), ""
        images = f"{prompt.images} image{'s' * (prompt.images != 1)}"
        return f"{prompt.tokens} tokens, {images}; the answer follows its last character.", prompt.text

    def _log(self, conversation: str, turn: int, question: Question, parameters: Parameters, reply: Reply) -> None:
        if self.log is None:
            return
        try:
            self.log.add(
                question.images,
                conversation=conversation,
                turn=turn,
                model=reply.model,
                question=question.text,
                answer=reply.text,
                finish_reason=reply.finish_reason,
                error=reply.error,
                tokens=reply.tokens,
                seconds=reply.seconds,
                parameters=parameters.body(),
            )
        except OSError as error:
            logger.error("an exchange is not in the log: %s", error)


def dim(on: Controls) -> None:
    """Parameters that change nothing cannot be moved."""
    drawn = [on.parameters[name] for name in DRAWN]
    do_sample, num_beams = on.parameters["do_sample"], on.parameters["num_beams"]
    do_sample.change(lambda is_on: [gr.update(interactive=is_on) for _ in DRAWN], [do_sample], drawn, **HIDDEN)
    penalty = on.parameters["length_penalty"]
    num_beams.change(lambda beams: gr.update(interactive=beams > 1), [num_beams], [penalty], **HIDDEN)


def parameters_of(values: tuple[Any, ...]) -> Parameters:
    """What the controls say; where they leave the seed open, one is drawn, so that it can be told."""
    given = Parameters(**{f.name: value for f, value in zip(fields(Parameters), values, strict=True)})
    return replace(given, seed=random.randrange(2**31)) if given.seed is None or given.seed < 0 else given


def refusal(sentence: str) -> gr.Error:
    """An error of the user's, said on the page and not in the log of the process."""
    return gr.Error(sentence, duration=8, print_exception=False)


def put_back(history: list[Message], seen: list[Message]) -> list[Message]:
    """A conversation whose questions are again what they were before the browser changed one."""
    return [*seen, *history[len(seen) :]]


def question_text(typed: str) -> str:
    """A question without the space around it; half a surrogate pair, which no JSON can carry, becomes `?`."""
    return typed.strip().encode(errors="replace").decode()


def new_conversation() -> str:
    """The name of a conversation in the log."""
    return uuid.uuid4().hex


def session(request: gr.Request) -> str:
    """The browser tab that a request comes from."""
    return str(request.session_hash)
