"""The HTTP API: `create_app()` for uvicorn, Ray Serve or another ASGI server; the model is loaded when it starts."""

import asyncio
import logging
import signal
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from open_flamingo.instruction_tuning.inferencer import Inferencer
from open_flamingo.serving.asking import Desk
from open_flamingo.serving.batcher import Batcher, Busy, Closing
from open_flamingo.serving.guard import ApiKey, BodyLimit, SameOrigin
from open_flamingo.serving.intake import Limits, RequestError
from open_flamingo.serving.metrics import Measured, Metrics
from open_flamingo.serving.routes import router
from open_flamingo.serving.schemas import error_body, explain
from open_flamingo.serving.settings import QUICKSTART, ServeSettings, read_settings

logger = logging.getLogger("open_flamingo.serving")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
FAILED = "lifespan.startup.failed"
CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(settings: ServeSettings | None = None) -> FastAPI:
    """The app of one model; without settings it reads them, from environment or file, when it starts."""
    app = FastAPI(title="Instruct-Flamingo", lifespan=_lifespan, docs_url=None, redoc_url=None)
    app.state.metrics = Metrics()
    app.include_router(router)
    app.add_middleware(Door, settings=settings, metrics=app.state.metrics)
    app.add_exception_handler(RequestError, _refused)
    app.add_exception_handler(Busy, _busy)
    app.add_exception_handler(Closing, _closing)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _failed)
    return app


class Door:
    """What all requests pass, built from the settings as the server starts; a user's mistake there is one sentence."""

    def __init__(self, app: ASGIApp, settings: ServeSettings | None, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.guarded: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        assert self.guarded is not None, "an app is only open within its lifespan"
        await self.guarded(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started, failure = False, None

        async def held(message: Message) -> None:
            nonlocal has_started, failure
            if message["type"] == FAILED:
                failure = message
                return
            has_started = True
            await send(message)

        try:
            settings = self.settings or read_settings()
            scope["app"].state.settings = settings
            self.guarded = Measured(guarded(self.app, settings), self.metrics)
            await self.app(scope, receive, held)
        except (ValueError, OSError) as error:
            if has_started:
                raise
            failure = {"type": FAILED, "message": f"error: {error}"}  # in place of a traceback
        finally:
            if failure is not None:
                await send(failure)


def guarded(app: ASGIApp, settings: ServeSettings) -> ASGIApp:
    """An app behind its guards."""
    app = BodyLimit(app, settings.max_body_bytes)
    if settings.api_key is not None:
        app = ApiKey(app, settings.api_key.get_secret_value())
    app = SameOrigin(app, settings.origins)
    if not settings.origins:
        return app
    # browsers ask first, without a key
    return CORSMiddleware(app, allow_origins=settings.origins, allow_methods=["GET", "POST"], allow_headers=["*"])


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings, metrics = app.state.settings, app.state.metrics
    inferencer = load(settings)
    batcher = Batcher(
        inferencer,
        batch_size=settings.batch_size,
        batch_tokens=settings.batch_tokens,
        queue_size=settings.queue_size,
        wait=settings.batch_wait,
        observe=metrics,
    )
    metrics.watch(lambda: batcher.waiting)
    app.state.desk = Desk(settings, inferencer, batcher, metrics, limits_of(settings), int(time.time()))
    log_what_is_served(settings, inferencer)
    with draining(batcher):
        yield
    await asyncio.to_thread(batcher.close)


def load(settings: ServeSettings) -> Inferencer:
    """The model of some settings. Raises ValueError where its checkpoint does not exist."""
    for path in map(str.strip, settings.checkpoint.split(",")):
        if not Path(path).exists():
            raise ValueError(
                f"there is no checkpoint {path}: name one with FLAMINGO_CHECKPOINT, or make {QUICKSTART} with"
                " `make quickstart`"
            )
    return Inferencer(
        settings.checkpoint,
        settings.lm_path,
        str(settings.tuning_config) if settings.tuning_config else None,
        settings.vision_encoder_path,
        settings.vision_encoder_pretrained,
        settings.cross_attn_every_n_layers,
        settings.v1,
        tokenizer_path=settings.tokenizer_path,
        quick_gelu=settings.quick_gelu,
        template=settings.template,
        device=settings.device,
        precision=settings.precision,
        compile=settings.compile,
    )


def limits_of(settings: ServeSettings) -> Limits:
    """What images requests may bring."""
    return Limits(
        images=settings.max_images,
        image_bytes=settings.max_image_bytes,
        image_pixels=settings.max_image_pixels,
        folders=settings.image_folders,
        allow_urls=settings.allow_urls,
        fetch_timeout=settings.fetch_timeout,
    )


def log_what_is_served(settings: ServeSettings, inferencer: Inferencer) -> None:
    """Say which model answers, within which limits, and to whom."""
    millions = sum(parameter.numel() for parameter in inferencer.model.parameters()) / 1e6
    logger.info(
        "serving %s (%s): %.0f million parameters, %s on %s",
        *(settings.name, settings.checkpoint, millions, settings.precision, inferencer.device),
    )
    logger.info(
        "batches of %d answers or %d tokens, a queue of %d, prompts of %d tokens with %d images, answers of %d tokens",
        *(settings.batch_size, settings.batch_tokens, settings.queue_size),
        *(settings.max_prompt_tokens, settings.max_images, settings.max_new_tokens),
    )
    logger.info(
        "images by path from %d folders, URLs are %s; %s",
        len(settings.image_folders),
        "fetched" if settings.allow_urls else "not fetched",
        "requests need the key" if settings.api_key else "no key is needed",
    )


@contextmanager
def draining(batcher: Batcher) -> Iterator[None]:
    """While it lasts, signals that end the server first refuse what waits, so that what runs is all it waits for."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}

    def drain(number: int, frame: FrameType | None) -> None:
        batcher.drain()
        handlers[signal.Signals(number)](number, frame)

    for number in handlers:
        signal.signal(number, drain)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# errors, all in one shape


def _error(
    status: int,
    message: str,
    code: str | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    return JSONResponse(error_body(status, message, code, param), status, headers)


def _refused(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return _error(error.status, error.message, error.code, error.param)


def _busy(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Busy)
    return _error(429, str(error), "busy", headers={"Retry-After": str(error.seconds)})


def _closing(_request: Request, _: Exception) -> JSONResponse:
    return _error(503, "the server is going down: ask another one, or again in a while", "closing")


def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    message, param = explain(error.errors())
    return _error(400, message, "invalid_request", param)


def _no_route(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    messages = {404: "there is no such path", 405: "this path is for another method"}
    message = messages.get(error.status_code, "the body cannot be read")
    headers = dict(error.headers) if error.headers else None
    return _error(error.status_code, message, CODES.get(error.status_code), headers=headers)


def _failed(_request: Request, error: Exception) -> JSONResponse:
    request_id = uuid.uuid4().hex
    logger.error("request %s failed: %s", request_id, type(error).__name__)  # the server logs its traceback
    return _error(500, f"the request failed; the server's log says why, at {request_id}")
