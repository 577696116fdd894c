"""What a server counts, for Prometheus: requests, batches, tokens, and the process."""

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from open_flamingo.instruction_tuning.generation import Answer

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        name: dict[str, Any] = {"registry": self.registry, "namespace": "flamingo"}
        self.requests = Counter("requests", "Requests answered, by path and status.", ["path", "status"], **name)
        self.seconds = Histogram(
            "request_seconds", "From a request to its last byte.", ["path"], buckets=SECONDS, **name
        )
        self.rows = Histogram("batch_rows", "Answers made together.", buckets=ROWS, **name)
        self.answers = Counter("answers", "Answers made, by how they ended.", ["finish_reason"], **name)
        self.tokens = Counter("generated_tokens", "Tokens of answers.", **name)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts.", **name)
        self.images = Counter("images", "Images of prompts.", **name)
        self.abandoned = Counter("abandoned", "Requests whose answer was given up: gone, late.", ["reason"], **name)
        self.waiting = Gauge("waiting", "Requests in the queue.", **name)
        for reason in ("gone", "late"):
            self.abandoned.labels(reason)

    def watch(self, waiting: Callable[[], int]) -> None:
        """Read the length of the queue there, whenever metrics are read."""
        self.waiting.set_function(waiting)

    def batch(self, rows: int) -> None:
        """A batch begins."""
        self.rows.observe(rows)

    def answer(self, answer: Answer, *, is_wanted: bool) -> None:
        """An answer is done, or given up."""
        if is_wanted:
            self.answers.labels("length" if answer.is_cut else "stop").inc()
        self.tokens.inc(answer.tokens)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


class Measured:
    """Counts the requests to an app, and their time."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, begun = 500, time.perf_counter()

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            # a path that no route has is whatever a client makes up
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - begun)
