"""The paths of the API: OpenAI's, those of 2023, and what tells how the server is."""

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.background import BackgroundTask

from instruction_dataset.dialogue import ASSISTANT, HUMAN
from open_flamingo.instruction_tuning.generation import Prompt, Settings
from open_flamingo.serving.asking import Desk, Exchange, Piece
from open_flamingo.serving.chat import Completion, event, read_messages, refuse_unsupported, start_completion
from open_flamingo.serving.intake import RequestError
from open_flamingo.serving.schemas import (
    Args,
    ChatCompletion,
    ChatRequest,
    CleverAnswer,
    CleverRequest,
    ErrorBody,
    ExactPrompt,
    ModelList,
    Responses,
    ServedModel,
    Status,
    error_body,
)

COLDEST = 1e-3
"""A temperature below it takes the likeliest token; logits divided by it are finite."""
STOP = (HUMAN.strip(), ASSISTANT.strip())
"""Where answers end in any case, as in `Inferencer`."""
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Proxies pass each event on as it comes."""
T = TypeVar("T")
EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"itemSchema": EVENT}}}}
TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


class JsonRoute(APIRoute):
    """Reads a body as JSON whatever its Content-Type says; the clients of 2023 send none."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            others = [header for header in request.scope["headers"] if header[0] != b"content-type"]
            request.scope["headers"] = [*others, (b"content-type", b"application/json")]
            return await handle(Request(request.scope, request.receive))

        return handle_json


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


AtDesk = Annotated[Desk, Depends(_desk)]
router = APIRouter(route_class=JsonRoute, responses=ERRORS)


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAM)
async def chat_completions(body: ChatRequest, request: Request, desk: AtDesk) -> ChatCompletion | StreamingResponse:
    """Answer a conversation, at once or as a stream of events."""
    desk.check_model(body.model)
    refuse_unsupported(body)
    client = desk.admit(request)
    record, sources = read_messages(body.messages)
    ids = await desk.conversation(record)
    settings = chat_settings(body, desk.new_tokens(ids, *asked_tokens(body)))
    prompt = Prompt(ids, await desk.look(sources, client))
    exchange = desk.begin(client, prompt, settings, body.n or 1, body.seed, streams=bool(body.stream))
    completion = start_completion(body, exchange.id, len(ids))
    first = await exchange.first()
    if first is None and (answers := exchange.answers()) and not body.stream:
        return completion.whole(answers)
    events = _events(exchange, completion, first)
    return StreamingResponse(events, 200, UNBUFFERED, "text/event-stream", BackgroundTask(exchange.close))


async def _events(exchange: Exchange, completion: Completion, first: Piece | None) -> AsyncIterator[str]:
    """The events of a stream; what goes wrong once it has begun is its last."""
    try:
        for opening in completion.opening():
            yield opening
        async for number, text in exchange.pieces(first):
            yield completion.piece(number, text)
        for closing in completion.closing(exchange.answers()):
            yield closing
    except RequestError as error:
        yield event(error_body(error.status, error.message, error.code, error.param))
    finally:
        await exchange.close()


def asked_tokens(body: ChatRequest) -> tuple[int | None, str]:
    """How many tokens an answer may have at most, and the parameter that says so."""
    if body.max_completion_tokens is not None:
        return body.max_completion_tokens, "max_completion_tokens"
    return body.max_tokens, "max_tokens"


def chat_settings(body: ChatRequest, max_new_tokens: int) -> Settings:
    """How the answers to a conversation are made."""
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return Settings(
        max_new_tokens=max_new_tokens,
        num_beams=_given(body.num_beams, 1),
        length_penalty=_given(body.length_penalty, 1.0),
        no_repeat_ngram_size=_given(body.no_repeat_ngram_size, 0),
        stop=(*STOP, *stop),
        **sampling(
            do_sample=_given(body.do_sample, True),
            temperature=_given(body.temperature, 1.0),
            top_k=_given(body.top_k, 0),
            top_p=_given(body.top_p, 1.0),
        ),
    )


@router.post("/prompt")
async def exact_prompt(body: ChatRequest, desk: AtDesk) -> ExactPrompt:
    """What the model would get for a conversation; its images are not read."""
    desk.check_model(body.model)
    record, sources = read_messages(body.messages)
    ids = await desk.conversation(record)
    text = str(desk.inferencer.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    return ExactPrompt(prompt=text, tokens=len(ids), images=len(sources))


@router.post("/", operation_id="root")
@router.post("/clever_flamingo", operation_id="clever_flamingo")
async def clever_flamingo(body: CleverRequest, request: Request, desk: AtDesk) -> CleverAnswer:
    """Answer a prompt that is written out, as the API of 2023 did."""
    client = desk.admit(request)
    content, args = body.content_lst, body.content_lst.args or Args()
    sources = content.imgpaths or []
    ids = await desk.written_out(content.prompt, len(sources))
    settings = clever_settings(args, desk.new_tokens(ids, args.max_new_token, "max_new_token"))
    prompt = Prompt(ids, await desk.look(sources, client))
    exchange = desk.begin(client, prompt, settings, 1, args.seed, streams=False)
    await exchange.first()
    return CleverAnswer(result=Responses(response=[answer.text for answer in exchange.answers()]))


def clever_settings(args: Args, max_new_tokens: int) -> Settings:
    """How an answer is made; where it is not said, as `Inferencer` makes it."""
    return Settings(
        max_new_tokens=max_new_tokens,
        num_beams=_given(args.num_beams, 3),
        length_penalty=_given(args.length_penalty, 1.0),
        no_repeat_ngram_size=_given(args.no_repeat_ngram_size, 3),
        stop=STOP,
        **sampling(
            do_sample=_given(args.do_sample, True),
            temperature=_given(args.temperature, 1.0),
            top_k=_given(args.top_k, 20),
            top_p=_given(args.top_p, 0.9),
        ),
    )


def sampling(*, do_sample: bool, temperature: float, top_k: int, top_p: float) -> dict[str, Any]:
    """How tokens are drawn; whatever else greedy requests say, they are alike, and share batches."""
    if not do_sample or temperature < COLDEST or top_p == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


@router.get("/v1/models")
async def models(desk: AtDesk) -> ModelList:
    """The one model that is served."""
    return ModelList(data=[ServedModel(id=desk.settings.name, created=desk.started)])


@router.get("/health")
async def health() -> Status:
    """Whether the process is up."""
    return Status(status="up")


@router.get("/ready")
async def ready(request: Request) -> Status:
    """Whether requests are answered: the model is loaded, and the server is not going down."""
    desk: Desk | None = getattr(request.app.state, "desk", None)
    if desk is None or not desk.batcher.is_open:
        raise RequestError(503, "the server is not ready", code="not_ready")
    return Status(status="ready")


@router.get("/metrics", response_class=Response, responses=TEXT)
async def metrics(request: Request) -> Response:
    """What was counted, for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)
