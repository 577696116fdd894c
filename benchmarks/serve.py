"""How fast a server answers clients that ask at once, in batches and one by one, and whether it lasts.

    python benchmarks/serve.py --json serve.json --plot serve.svg      medians of 3: half an hour
    python benchmarks/serve.py --clients 8 --repeats 1                 what the goal is about: minutes
    python benchmarks/serve.py --soak 10 --json soak.json              overload for 10 minutes, see benchmarks/serve_soak.py

Two real `uvicorn api:app` with the quickstart's model, `batches` with the default settings and `serial` with
FLAMINGO_BATCH_SIZE=1, are asked in turn by clients that ask again as soon as they are answered. "image questions" are those
of the first held-out dataset, answered greedily; they come again only when a server has forgotten their images. "long
answers" have 32 tokens, drawn so hot that none ends before.
Prints tables of answers per second, of p50 and p95 of the time to an answer, and of ratios, all medians over the repeats; a
ratio is that of one repeat. Fails where the two servers give different answers to the same request.
"""

import argparse
import asyncio
import json
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from serve_clients import COMPLETIONS, Server, answer_of, image_questions, long_answers, serving
from serve_soak import soak
from tqdm import tqdm
from train import machine, print_table

BATCHES, SERIAL = "batches", "serial"
CONTENDERS = {BATCHES: {}, SERIAL: {"batch_size": 1}}
"""The settings of each server."""
PATIENT = {"request_timeout": 3600, "queue_size": 1024}
"""Of both: serially, the last of many clients waits for minutes."""
TOKENS = "tokens/s"
Requests = list[dict[str, Any]]


class Case(NamedTuple):
    """What is asked, and by how many at once."""

    load: str
    clients: int

    def __str__(self) -> str:
        return f"{self.load}, {self.clients} client{'s' * (self.clients > 1)}"


class Timing(NamedTuple):
    """All answers of one case from one server."""

    seconds: float
    """From the first question to the last answer."""
    latencies: list[float]
    tokens: int
    texts: list[str]

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds

    def quantile(self, part: float) -> float:
        """The time to an answer that a part of all answers took at most, in seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


Timings = dict[Case, dict[str, list[Timing]]]
"""Of each server, one for each repeat."""


def main() -> int:
    """Measure, print the tables, and write what was asked for; 1 if the soak failed."""
    args = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers end too
    report: dict[str, Any] = {"machine": machine(), "threads": args.threads}
    problems: list[str] = []
    if args.soak is not None:
        report["soak"], problems = soak(args.checkpoint, args.data, args.soak, args.threads, args.plot)
    else:
        report |= {"repeats": args.repeats} | speeds(args)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.stdout.writelines(f"failed: {problem}\n" for problem in problems)
    return 1 if problems else 0


def speeds(args: argparse.Namespace) -> dict[str, Any]:
    """All tables, drawn where that was asked for, and what they are made of."""
    loads = {
        "image questions": (image_questions(args.data, args.checkpoint)[0], 4 * args.requests),
        "long answers": (long_answers(args.checkpoint), args.requests),
    }
    with (
        serving(args.checkpoint, args.threads, **PATIENT, **CONTENDERS[BATCHES]) as batches,
        serving(args.checkpoint, args.threads, **PATIENT, **CONTENDERS[SERIAL]) as serial,
    ):
        timings = interleaved({BATCHES: batches, SERIAL: serial}, loads, args.clients, args.repeats)
    columns = tables(timings)
    for title, table in columns.items():
        print_table(title, table)
    if args.plot:
        draw(timings, args.plot)
    raw = {
        str(case): {name: [timing._asdict() for timing in repeats] for name, repeats in of_case.items()}
        for case, of_case in timings.items()
    }
    return columns | {"timings": raw}


def interleaved(
    servers: dict[str, Server], loads: dict[str, tuple[Requests, int]], clients: Sequence[int], repeats: int
) -> Timings:
    """Every case asked of both servers in turn, as often as asked, after a first request that does not count."""
    cases = [Case(load, number) for load in loads for number in clients]
    endless = {load: cycle(requests) for load, (requests, _) in loads.items()}
    timings: Timings = {case: {name: [] for name in servers} for case in cases}
    for todo in endless.values():
        for server in servers.values():
            asyncio.run(ask_all(server, [next(todo)], 1))
    with tqdm(total=len(cases) * len(servers) * repeats) as bar:
        for repeat in range(repeats):
            for case in cases:
                wanted = max(loads[case.load][1], 2 * case.clients)
                requests = list(islice(endless[case.load], wanted))
                for name in list(servers)[:: 1 if repeat % 2 else -1]:
                    timings[case][name].append(asyncio.run(ask_all(servers[name], requests, case.clients)))
                    bar.update()
                refuse_differences(case, timings[case])
    return timings


async def ask_all(server: Server, requests: Requests, clients: int) -> Timing:
    """Let clients share the requests, each with one of them under way at a time."""
    latencies, texts, tokens = [0.0] * len(requests), [""] * len(requests), [0] * len(requests)
    bodies, numbers = [json.dumps(request).encode() for request in requests], count()
    async with server.client() as client:

        async def ask_on() -> None:
            while (number := next(numbers)) < len(bodies):
                begun = time.perf_counter()
                response = await client.post(COMPLETIONS, content=bodies[number])
                latencies[number] = time.perf_counter() - begun
                texts[number], tokens[number] = answer_of(response)

        started = time.perf_counter()
        await asyncio.gather(*(ask_on() for _ in range(clients)))
        return Timing(time.perf_counter() - started, latencies, sum(tokens), texts)


def refuse_differences(case: Case, timings: dict[str, list[Timing]]) -> None:
    """Raise ValueError where the servers do not give the same answers."""
    for one, other in zip(*timings.values(), strict=True):
        wrong = [pair for pair in zip(one.texts, other.texts, strict=True) if pair[0] != pair[1]]
        if wrong:
            raise ValueError(f"{case}: {len(wrong)} answers differ between {' and '.join(timings)}: {wrong[0]}")


def tables(timings: Timings) -> dict[str, dict[str, dict[str, float]]]:
    """Medians over the repeats, by title, column and case."""
    columns: dict[str, dict[str, dict[str, float]]] = {}
    figures = {
        "answers/s": lambda timing: timing.rate,
        TOKENS: lambda timing: timing.tokens / timing.seconds,
        "p50, s": lambda timing: timing.quantile(0.5),
        "p95, s": lambda timing: timing.quantile(0.95),
    }
    for title, figure in figures.items():
        columns[title] = {
            name: {str(case): statistics.median(map(figure, of_case[name])) for case, of_case in timings.items()}
            for name in CONTENDERS
        }
    columns["batches / serial"] = {"answers/s": {str(case): speedup(of_case) for case, of_case in timings.items()}}
    return columns


def speedup(timings: dict[str, list[Timing]]) -> float:
    """The rate of batches over that of serial answers, the median over the repeats."""
    pairs = zip(timings[BATCHES], timings[SERIAL], strict=True)
    return statistics.median(batches.rate / serial.rate for batches, serial in pairs)


def draw(timings: Timings, path: Path) -> None:
    """Answers per second and p95 of the time to an answer against the number of clients, a column for each load."""
    mpl.use("svg")
    from matplotlib import pyplot as plt

    columns, loads = tables(timings), list(dict.fromkeys(case.load for case in timings))
    figure, grid = plt.subplots(2, len(loads), figsize=(5 * len(loads), 6), squeeze=False, layout="constrained")
    for column, load in zip(grid.T, loads, strict=True):
        cases = [case for case in timings if case.load == load]
        for axes, title in zip(column, ("answers/s", "p95, s"), strict=True):
            for name, values in columns[title].items():
                axes.plot(
                    [str(case.clients) for case in cases], [values[str(c)] for c in cases], marker="o", label=name
                )
            axes.set(title=load, xlabel="clients at once", ylabel=title, ylim=(0, None))
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    run = Path("runs/quickstart")
    parser.add_argument("--checkpoint", type=Path, default=run / "checkpoint_0.pt", help="what is served; %(default)s")
    parser.add_argument("--data", type=Path, default=run / "digits/held_out.json", help="what is asked; %(default)s")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32], help="that ask at once; 1 8 32")
    parser.add_argument(
        "--requests", type=int, default=32, help="long answers per case, at least, of the short four times as many; 32"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of each case; 3")
    parser.add_argument("--threads", type=int, default=2, help="of each server's torch; 2")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="measure only whether a server lasts at overload")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--plot", type=Path, help="draw the figures to this file (SVG)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
