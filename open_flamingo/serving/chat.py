"""OpenAI's chat completions: messages to a record of instruction data, answers to its objects and events."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from instruction_dataset.formats import parse_row
from instruction_dataset.records import Record
from open_flamingo.instruction_tuning.generation import Answer
from open_flamingo.serving.intake import RequestError
from open_flamingo.serving.schemas import (
    AnswerMessage,
    ChatCompletion,
    ChatRequest,
    Choice,
    Ending,
    Message,
    TextPart,
    Usage,
)

UNSUPPORTED = (
    *("tools", "functions", "logprobs", "top_logprobs", "logit_bias", "audio", "web_search_options"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "min_p", "best_of", "suffix", "echo"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"),
)
"""What would change an answer in ways that are not computed here; null, false, 0 and empty ones do not."""
ONLY = {
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""What may be said, but in these ways alone."""
DONE = "data: [DONE]\n\n"


def refuse_unsupported(body: ChatRequest) -> None:
    """Raise RequestError for a field that would change the answer if it were known here."""
    given = {name: value for name, value in (body.model_extra or {}).items() if value}
    wrong = [name for name in UNSUPPORTED if name in given]
    wrong += [name for name, values in ONLY.items() if name in given and given[name] not in values]
    if wrong:
        raise RequestError(
            400, f"{wrong[0]} is not supported: leave it out", code="unsupported_parameter", param=wrong[0]
        )


def read_messages(messages: Sequence[Message]) -> tuple[Record, list[str]]:
    """A conversation as the record whose last answer is asked for, and where its images are; they are named by number.

    It is the record that a data file of the same messages gives. Raises RequestError for what is no such conversation.
    """
    sources: list[str] = []
    rows = [{"role": message.role, "content": _content(message, sources)} for message in messages]
    if messages[-1].role != "user":
        raise RequestError(400, "the last message must be the user's", param="messages")
    try:
        # an answer makes it a record; it is not part of the prompt
        return parse_row({"messages": [*rows, {"role": "assistant", "content": "-"}]}), sources
    except ValueError as error:
        raise RequestError(400, str(error), param="messages") from error


def _content(message: Message, sources: list[str]) -> str | list[dict[str, str]]:
    """A message's content as a data file has it, with the number of each image in place of its path."""
    if isinstance(message.content, str):
        return message.content
    parts = []
    for part in message.content:
        if isinstance(part, TextPart):
            parts.append({"type": "text", "text": part.text})
        else:
            sources.append(part.image_url.url)
            parts.append({"type": "image", "image": str(len(sources))})
    return parts


@dataclass(frozen=True)
class Completion:
    """Who answers what: the head of all objects that a request is answered with."""

    id: str
    model: str
    created: int
    prompt_tokens: int
    answers: int
    with_usage: bool = False
    """Whether the stream ends with the usage."""

    def whole(self, answers: Sequence[Answer]) -> ChatCompletion:
        """The answers in one object."""
        choices = [
            Choice(index=i, message=AnswerMessage(content=answer.text), finish_reason=_ending(answer))
            for i, answer in enumerate(answers)
        ]
        return ChatCompletion(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=self._usage(answers)
        )

    def opening(self) -> Iterator[str]:
        """The events that tell who speaks."""
        for i in range(self.answers):
            yield self._event(i, {"role": "assistant", "content": ""})

    def piece(self, number: int, text: str) -> str:
        """The event of a further piece of an answer."""
        return self._event(number, {"content": text})

    def closing(self, answers: Sequence[Answer]) -> Iterator[str]:
        """The events after the last piece."""
        for i, answer in enumerate(answers):
            yield self._event(i, {}, _ending(answer))
        if self.with_usage:
            yield event(self._chunk([]) | {"usage": self._usage(answers).model_dump()})
        yield DONE

    def _usage(self, answers: Sequence[Answer]) -> Usage:
        tokens = sum(answer.tokens for answer in answers)
        return Usage(
            prompt_tokens=self.prompt_tokens, completion_tokens=tokens, total_tokens=self.prompt_tokens + tokens
        )

    def _event(self, number: int, delta: dict[str, str], ending: Ending | None = None) -> str:
        return event(self._chunk([{"index": number, "delta": delta, "logprobs": None, "finish_reason": ending}]))

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
        return head | {"choices": choices} | ({"usage": None} if self.with_usage else {})


def start_completion(body: ChatRequest, id: str, prompt_tokens: int) -> Completion:
    """What the answers to a request are told with."""
    with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return Completion(f"chatcmpl-{id}", body.model, int(time.time()), prompt_tokens, body.n or 1, with_usage)


def event(value: dict[str, Any]) -> str:
    """A server-sent event, in ASCII: readers of lines break them at U+2028 and its like too."""
    return f"data: {json.dumps(value)}\n\n"


def _ending(answer: Answer) -> Ending:
    return "length" if answer.is_cut else "stop"
