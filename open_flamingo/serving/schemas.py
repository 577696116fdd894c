"""The bodies of requests and answers: OpenAI's chat completions, the requests of 2023, and errors."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

LEAST_INT, LARGEST_INT = -(2**63), 2**63 - 1
DEEPEST_PENALTY = 10.0
HOTTEST = 1e6
"""Any token is as likely as any other; far above it float32 knows no quotient."""
LONGEST_STOP = 256
"""Characters; each token of an answer is looked at for every beginning of a stop string."""

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Body(BaseModel):
    """JSON of a request: types as they are written, numbers that are finite, keys that nobody knows left out."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, hide_input_in_errors=True)


Amount = Annotated[int, Field(ge=0, le=1_000_000)]
Positive = Annotated[int, Field(ge=1, le=1_000_000)]
Beams = Annotated[int, Field(ge=1, le=1000)]
Temperature = Annotated[float, Field(ge=0, le=HOTTEST)]
Share = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-DEEPEST_PENALTY, le=DEEPEST_PENALTY)]
Seed = Annotated[int, Field(ge=LEAST_INT, le=LARGEST_INT)]
StopText = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]


# chat completions


class TextPart(Body):
    """A text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Body):
    """Where an image is: in a data URL, or at an address."""

    url: str
    detail: str | None = None


class ImagePart(Body):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Body):
    """What one side said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]


class StreamOptions(Body):
    """What a stream tells besides its text."""

    include_usage: bool | None = None


class ChatRequest(Body):
    """A conversation whose next message is asked for; after `stream_options`, what OpenAI's API does not have."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: Amount | None = None
    num_beams: Beams | None = None
    length_penalty: Penalty | None = None
    no_repeat_ngram_size: Amount | None = None
    do_sample: bool | None = None


class Usage(BaseModel):
    """Tokens; an image is one."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


Ending = Literal["stop", "length"]


class Choice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: None = None
    finish_reason: Ending


class ChatCompletion(BaseModel):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class ServedModel(BaseModel):
    """A model as the list of models names it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "instruct-flamingo"


class ModelList(BaseModel):
    """The models that are served: one."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


class ExactPrompt(BaseModel):
    """What the model gets for a conversation, with `<image>` where images stand."""

    prompt: str
    tokens: int
    images: int


# requests of 2023


class Args(Body):
    """How an answer is made; what is missing or null is as in `Inferencer`."""

    max_new_token: Positive | None = None
    num_beams: Beams | None = None
    temperature: Temperature | None = None
    top_k: Amount | None = None
    top_p: Share | None = None
    do_sample: bool | None = None
    length_penalty: Penalty | None = None
    no_repeat_ngram_size: Amount | None = None
    seed: Seed | None = None


class Content(Body):
    """A whole prompt, and the paths or data URLs of the images that its `<image>` stand for."""

    prompt: str
    imgpaths: list[str] | None = None
    args: Args | None = None


class CleverRequest(Body):
    """A request as the clients of 2023 send it."""

    content_lst: Content
    typ: Any = None


class Responses(BaseModel):
    """Answers, one to each prompt."""

    response: list[str]


class CleverAnswer(BaseModel):
    """The answer that the clients of 2023 read."""

    result: Responses


# the server itself


class Status(BaseModel):
    """How a server is."""

    status: Literal["up", "ready"]


class ErrorDetail(BaseModel):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The one shape of errors."""

    error: ErrorDetail


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error as clients get it."""
    kind = ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def explain(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """Pydantic's errors as a sentence that holds nothing of the request, and the parameter that is wrong."""
    error = max(errors, key=lambda error: len(error["loc"]))  # of a union's members, the one that fits furthest
    if error["type"] == "json_invalid":
        return "the body is not JSON", None
    # what a union calls its members is pydantic's own, or the name of the field that follows
    known = (place for place, _ in groupby(error["loc"][1:]) if isinstance(place, int) or place in FIELDS)
    param = "".join(f"[{place}]" if isinstance(place, int) else f".{place}" for place in known).removeprefix(".")
    tags = "its type must be 'text' or 'image_url'"
    problem = tags if error["type"].startswith("union_tag") else str(error["msg"])
    return f"{param or 'the body'}: {problem}", param or None


BODIES = (ChatRequest, Message, TextPart, ImagePart, ImageUrl, StreamOptions, CleverRequest, Content, Args)
FIELDS = {name for body in BODIES for name in body.model_fields}
"""All names of parameters."""
