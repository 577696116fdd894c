"""A conversation: from the messages on the page to the request that asks its last question, and the answer to it."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from demo.client import Api, ApiError
from demo.pictures import data_url

Message = dict[str, Any]
"""A message as the page holds it: its role and parts, and in its metadata whether it is a notice."""


class Question(NamedTuple):
    """What the user asks: images, then a text."""

    text: str
    images: tuple[Path, ...] = ()


class Turn(NamedTuple):
    """A question and its answer."""

    question: Question
    answer: str


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """How an answer is made; the names are those of the `Inferencer`."""

    max_new_token: int = 512
    num_beams: int = 1
    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 20
    top_p: float = 0.9
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    seed: int | None = None

    def body(self) -> dict[str, Any]:
        """The fields of a request that say so."""
        fields = asdict(self)
        return {"max_tokens": fields.pop("max_new_token")} | fields


def note(title: str, text: str) -> Message:
    """A notice of the demo itself in a conversation, which the model never sees."""
    return {"role": "assistant", "content": text, "metadata": {"title": title}}


def asked(question: Question) -> Message:
    """A question as a message of the page."""
    images = [{"path": str(path)} for path in question.images]
    text = [{"type": "text", "text": question.text}] if question.text else []
    return {"role": "user", "content": [*images, *text]}


def split(history: Sequence[Message]) -> tuple[list[Turn], Question | None]:
    """The turns that were answered, and the question that was not; what was asked in vain before it is left out."""
    turns: list[Turn] = []
    question = None
    for message in history:
        if message["role"] == "user":
            question = _question(message)
        elif question is not None and not (message.get("metadata") or {}).get("title"):
            turns.append(Turn(question, _text(message)))
            question = None
    is_open = bool(history) and history[-1]["role"] == "user"
    return turns, question if is_open else None


def before_answer(history: Sequence[Message]) -> list[Message]:
    """A conversation as it stood when its last question was asked."""
    asked_at = max((i for i, message in enumerate(history) if message["role"] == "user"), default=-1)
    return list(history[: asked_at + 1])


def request_body(model: str, turns: Sequence[Turn], question: Question, parameters: Parameters) -> dict[str, Any]:
    """The request that asks a question, with all that was said before it."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        messages += [_said(turn.question), {"role": "assistant", "content": turn.answer}]
    return {"model": model, "messages": [*messages, _said(question)], **parameters.body()}


@dataclass(eq=False)
class Reply:
    """An answer under way, which grows while its task runs and stays where it was when that is cancelled."""

    text: str = ""
    model: str | None = None
    finish_reason: str | None = None
    tokens: int | None = None
    error: str | None = None
    seconds: float = 0.0
    task: asyncio.Task | None = None

    def start(self, api: Api, turns: Sequence[Turn], question: Question, parameters: Parameters) -> asyncio.Task:
        """Begin to ask."""
        self.task = asyncio.create_task(self._run(api, turns, question, parameters))
        return self.task

    def stop(self) -> None:
        """End the answer as it stands."""
        if self.task is not None:
            self.task.cancel()

    async def _run(self, api: Api, turns: Sequence[Turn], question: Question, parameters: Parameters) -> None:
        started = time.monotonic()
        try:
            self.model = await api.model()
            body = await asyncio.to_thread(request_body, self.model, turns, question, parameters)
            async for piece in api.stream(body):
                self.text += piece.text
                self.finish_reason = piece.finish_reason or self.finish_reason
                self.tokens = self.tokens if piece.tokens is None else piece.tokens
        except ApiError as error:
            self.error = str(error)
            self.finish_reason = "error"
        except asyncio.CancelledError:
            self.finish_reason = "stopped"
            raise
        finally:
            self.seconds = round(time.monotonic() - started, 3)

    def messages(self) -> list[Message]:
        """What stands below the question: the answer, and a notice where it failed or is empty."""
        answer = [{"role": "assistant", "content": [{"type": "text", "text": self.text}]}] if self.text else []
        if self.error is not None:
            return [*answer, note("No answer" if not self.text else "The answer is not whole", self.error)]
        if self.finish_reason is not None and not self.text:
            said = "Stopped before the first word." if self.finish_reason == "stopped" else "The model said nothing."
            return [note("No answer", said)]
        return answer

    def summary(self, parameters: Parameters) -> str:
        """How the answer was made, in a line."""
        tokens = [] if self.tokens is None else [f"{self.tokens} token{'s' * (self.tokens != 1)}"]
        seed = [f"seed {parameters.seed}"] if parameters.do_sample else []
        ends = {"length": "cut at max_new_token", "stopped": "stopped", "error": "failed"}
        end = [ends[self.finish_reason]] if self.finish_reason in ends else []
        return " · ".join([*tokens, f"{self.seconds:.1f} s", *seed, *end])


def _question(message: Message) -> Question:
    parts = message["content"]
    files = tuple(Path(part["file"]["path"]) for part in parts if part["type"] == "file")
    return Question(_text(message), files)


def _text(message: Message) -> str:
    return "\n".join(part["text"] for part in message["content"] if part["type"] == "text")


def _said(question: Question) -> dict[str, Any]:
    images = [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in question.images]
    return {"role": "user", "content": [*images, {"type": "text", "text": question.text}]}
