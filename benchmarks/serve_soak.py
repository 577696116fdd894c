"""Whether a server lasts: clients that ask for more than it can answer, and its memory meanwhile.

Clients ask with texts of any length and with images; of their requests three in eleven are streamed, one is malformed, and
from one the client goes away. What is accepted, which is all that is not refused with 429, must be answered completely.
Memory is flat where the mean of its last fifth is at most 5% above that of its first, after a warm-up.
"""

import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl
import psutil
from serve_clients import COMPLETIONS, Server, image_questions, serving

CLIENTS = 32
QUEUE = 8
"""Requests that may wait: with a batch of 8 there is room for half of the clients."""
WARM_UP = 120.0
"""Seconds, or a quarter of a shorter soak: until caches are full, and the heap has its gaps."""
EVERY = 2.0
"""Seconds between two looks at the memory."""
MOST_GROWTH = 0.05
IMPATIENCE = 0.5
"""Seconds after which a client that goes away does so, at most."""
PAUSE = 1.0
"""Seconds between two requests of a client, at most: less than a server says, so that the queue is never empty for long."""
ACCEPTED, ANSWERED, REFUSED, MALFORMED, GONE = "accepted", "answered", "refused", "malformed", "gone"
Request = dict[str, Any]


@dataclass
class Soak:
    """A soak under way: what is asked, and what became of it."""

    questions: list[Request]
    ends: float
    """By time.monotonic()."""
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    """Each is an accepted request without its answer, or one that was answered as it should not be."""

    def text(self, rng: random.Random) -> Request:
        """A request without images, of any length."""
        words = " ".join(rng.choice(("one", "seven", "digit", "why")) for _ in range(rng.randint(1, 300)))
        how = {"max_tokens": rng.randint(1, 64), "temperature": rng.choice((0, 1, 5)), "seed": rng.randrange(99)}
        return {"model": self.questions[0]["model"], "messages": [{"role": "user", "content": words}]} | how

    def image(self, rng: random.Random) -> Request:
        """A question with its images."""
        return rng.choice(self.questions)

    async def ask(self, client: httpx.AsyncClient, request: Request) -> None:
        """Ask, and wait for the whole answer."""
        response = await client.post(COMPLETIONS, json=request)
        if self._is_accepted(response):
            is_whole = response.is_success and bool(response.json()["choices"][0]["finish_reason"])
            self._judge(is_whole, response.status_code, response.text)

    async def stream(self, client: httpx.AsyncClient, request: Request) -> None:
        """Ask, and read the answer as it grows, to its end."""
        async with client.stream("POST", COMPLETIONS, json=request | {"stream": True}) as response:
            if self._is_accepted(response):
                lines = [line async for line in response.aiter_lines() if line]
                is_whole = response.is_success and lines[-1:] == ["data: [DONE]"]
                self._judge(is_whole, response.status_code, "".join(lines[-2:]))

    async def go_away(self, client: httpx.AsyncClient, request: Request, rng: random.Random) -> None:
        """Ask, and hang up before the answer is there, or while it is read."""
        with suppress(TimeoutError):
            async with asyncio.timeout(rng.uniform(0, IMPATIENCE)):
                way = {"stream": rng.random() < 0.5}
                await client.post(COMPLETIONS, json=request | way | {"max_tokens": 64})
        self.counts[GONE] += 1

    async def ask_malformed(self, client: httpx.AsyncClient, request: Request, rng: random.Random) -> None:
        """Ask for what no server should answer; it must say so, unless it is too busy to look."""
        broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
        wrong: list[Request] = [
            {"max_tokens": 10**6},
            {"temperature": -1},
            {"model": "another"},
            {"messages": [{"role": "user", "content": [broken]}]},
            {"messages": [{"role": "user", "content": "word " * 20_000}]},
        ]
        response = await client.post(COMPLETIONS, json=request | rng.choice(wrong))
        if response.status_code not in (400, 404, 429):
            self.problems.append(f"a malformed request was answered with {response.status_code}: {response.text[:200]}")
        self.counts[MALFORMED] += 1

    def _is_accepted(self, response: httpx.Response) -> bool:
        """Whether a request was; one that was not must be told when to come again."""
        if response.status_code != httpx.codes.TOO_MANY_REQUESTS:
            self.counts[ACCEPTED] += 1
            return True
        self.counts[REFUSED] += 1
        if int(response.headers.get("Retry-After", 0)) < 1:
            self.problems.append("a 429 does not say when to come again")
        return False

    def _judge(self, is_whole: bool, status: int, text: str) -> None:
        self.counts[ANSWERED] += is_whole
        if not is_whole:
            self.problems.append(f"an accepted request ended with {status}: {text[:200]}")


def soak(
    checkpoint: Path, data: Path, minutes: float, threads: int, plot: Path | None
) -> tuple[dict[str, Any], list[str]]:
    """Overload a server for some minutes: what was counted and measured, and what is wrong with it."""
    with serving(checkpoint, threads, queue_size=QUEUE) as server:
        questions = [*chain.from_iterable(image_questions(data, checkpoint))]
        under_way = Soak(questions, time.monotonic() + 60 * minutes)
        memory = asyncio.run(_overload(server, under_way))
        waiting = _waiting(server)
    warm = min(WARM_UP, 15 * minutes)
    first, last = _ends([(seconds, mib) for seconds, mib in memory if seconds >= warm])
    growth = last / first - 1
    problems = under_way.problems
    if growth > MOST_GROWTH:
        problems.append(f"memory grew by {growth:.1%}, more than {MOST_GROWTH:.0%}")
    if waiting:
        problems.append(f"{waiting:.0f} requests still wait, though nobody asks any more")
    report = {"minutes": minutes, "clients": CLIENTS, "queue": QUEUE} | dict(under_way.counts)
    report |= {"first, MiB": first, "last, MiB": last, "growth": growth}
    _print(report)
    if plot is not None:
        _draw(memory, plot)
    return report | {"memory, (s, MiB)": memory, "problems": problems}, problems


async def _overload(server: Server, under_way: Soak) -> list[tuple[float, float]]:
    """Ask until the time is up; the server's memory meanwhile."""
    async with server.client() as client:
        watching = asyncio.create_task(_watch(server, under_way.ends))
        await asyncio.gather(*(_ask_on(client, under_way, random.Random(seed)) for seed in range(CLIENTS)))
        return await watching


async def _ask_on(client: httpx.AsyncClient, under_way: Soak, rng: random.Random) -> None:
    """One client, until the time is up; a connection that breaks off is a problem and not its end."""
    ways: list[Callable[[Request], Awaitable[None]]] = [
        lambda request: under_way.ask(client, request),
        lambda request: under_way.stream(client, request),
        lambda request: under_way.go_away(client, request, rng),
        lambda request: under_way.ask_malformed(client, request, rng),
    ]
    while time.monotonic() < under_way.ends:
        make = rng.choice((under_way.text, under_way.image))
        (way,) = rng.choices(ways, (6, 3, 1, 1))
        try:
            await way(make(rng))
        except httpx.HTTPError as error:
            under_way.problems.append(f"a request broke off: {error!r}")
        await asyncio.sleep(rng.uniform(0, PAUSE))


async def _watch(server: Server, ends: float) -> list[tuple[float, float]]:
    """The server's resident memory every few seconds, in MiB, with the seconds since the begin."""
    process, begun, seen = psutil.Process(server.process.pid), time.monotonic(), []
    while time.monotonic() < ends:
        seen.append((time.monotonic() - begun, process.memory_info().rss / 2**20))
        await asyncio.sleep(EVERY)
    return seen


def _ends(memory: list[tuple[float, float]]) -> tuple[float, float]:
    """The means of the first fifth and of the last."""
    part = max(1, len(memory) // 5)
    values = [mib for _, mib in memory]
    return statistics.mean(values[:part]), statistics.mean(values[-part:])


def _waiting(server: Server) -> float:
    """How many requests the server still has in its queue."""
    lines = httpx.get(f"{server.url}/metrics", trust_env=False).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("flamingo_waiting "))


def _print(report: dict[str, Any]) -> None:
    cells = [f"{value:.3f}" if name == "growth" else f"{value:,.0f}" for name, value in report.items()]
    sys.stdout.write(f"\n| {' | '.join(report)} |\n|{' --- |' * len(report)}\n| {' | '.join(cells)} |\n")


def _draw(memory: list[tuple[float, float]], path: Path) -> None:
    """Memory against time."""
    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    axes.plot([seconds / 60 for seconds, _ in memory], [mib for _, mib in memory])
    axes.set(xlabel="minutes", ylabel="resident memory, MiB", ylim=(0, None))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
