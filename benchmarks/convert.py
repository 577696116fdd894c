"""What converting costs: `python benchmarks/convert.py` converts a made-up LLaVA file of a million records.

Prints the peak memory of `python -m instruction_dataset.convert` for 1,000 and for N records, and its speed against
`json.load` of the same file, which holds all of it in memory and writes nothing. Every run is a process of its own, timed
whole from its start to its end, so the imports count; runs of both kinds alternate, and medians are printed. The file has
1 to 3 turns a record, 2.4 records out of each on average, and words by Zipf's law; it is made where it is not there yet.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np

from instruction_dataset.records import written_whole
from instruction_dataset.words import ASK, STOP, texts

SOURCE = "llava-conversation-58k"
FILE = "conversation_58k.json"
FEW = 1000
WORDS = {"question": (9, 0.4), "answer": (28, 0.7)}
"""Median and sigma of a log-normal, as of LLaVA's conversations."""
TEXTS = 20_000
"""Different questions, and answers, from which the records are drawn."""
JSON_LOAD = "import json, pathlib, sys; json.load(pathlib.Path(sys.argv[1]).open(encoding='utf-8'))"
LAUNCH = """import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)"""
"""Runs a command in between: a process's peak counts what its parent held as it began, and this one holds nothing."""
MIB = 2**20


def main() -> None:
    """Make the files, convert them and print."""
    args = _parser().parse_args()
    for records in (FEW, args.records):
        write_source(args.folder / str(records), records, args.seed)
    folder = args.folder / str(args.records)
    size = (folder / FILE).stat().st_size
    runs: dict[str, list[tuple[float, int]]] = {"few": [], "many": [], "json.load": []}
    for _ in range(args.repeats):
        runs["few"].append(measured(convert_command(args.folder / str(FEW))))
        runs["many"].append(measured(convert_command(folder)))
        runs["json.load"].append(measured([sys.executable, "-c", JSON_LOAD, str(folder / FILE)]))
    for line in lines(runs, args.records, size):
        sys.stdout.write(line + "\n")


def lines(runs: dict[str, list[tuple[float, int]]], records: int, size: int) -> Iterator[str]:
    """What the runs say, to print."""
    seconds = {name: statistics.median(second for second, _ in runs[name]) for name in runs}
    peaks = {name: statistics.median(peak for _, peak in runs[name]) / MIB for name in runs}
    yield f"{records:,} records, {size / 1e6:,.0f} MB of JSON, median of {len(runs['many'])} runs"
    yield f"convert    {seconds['many']:6.2f} s  {size / 1e6 / seconds['many']:6.1f} MB/s  {peaks['many']:8.1f} MiB peak"
    yield (
        f"json.load  {seconds['json.load']:6.2f} s  {size / 1e6 / seconds['json.load']:6.1f} MB/s"
        f"  {peaks['json.load']:8.1f} MiB peak"
    )
    yield f"speed of convert against json.load: {seconds['json.load'] / seconds['many']:.2f}"
    yield f"peak memory of {FEW:,} records: {peaks['few']:.1f} MiB; of {records:,}: {peaks['many'] - peaks['few']:+.1f} MiB"


def convert_command(folder: Path) -> list[str]:
    """The command that converts the file in `folder`."""
    output = folder.with_name("converted.json")
    return [
        *(sys.executable, "-m", "instruction_dataset.convert", SOURCE),
        *("--source", str(folder), "--output", str(output)),
    ]


def measured(command: list[str]) -> tuple[float, int]:
    """Seconds of a process from start to end, and the bytes of its peak resident memory."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", LAUNCH, *command], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
    return seconds, int(done.stdout) * 1024


def write_source(folder: Path, records: int, seed: int) -> None:
    """A LLaVA file of so many records in `folder`, unless it is there."""
    if (folder / FILE).exists():
        return
    made = rows(seed)
    with written_whole(folder / FILE) as file:
        for number, row in enumerate(islice(made, records)):
            file.write(("[" if number == 0 else ", ") + json.dumps(row))
        file.write("]")


def rows(seed: int) -> Iterator[dict[str, Any]]:
    """Records as of LLaVA, without end."""
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    questions, answers = (
        list(texts(numbers, np.clip(numbers.lognormal(np.log(median), sigma, TEXTS).astype(int), 1, 400), end))
        for (median, sigma), end in zip(WORDS.values(), (ASK, STOP), strict=True)
    )
    while True:
        name = f"{rng.randrange(600_000):012d}"
        said = [text for _ in range(rng.randint(1, 3)) for text in (rng.choice(questions), rng.choice(answers))]
        said[0] = rng.choice(("<image>\n{}", "{}\n<image>")).format(said[0])
        turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]
        yield {"id": name, "image": f"{name}.jpg", "conversations": turns}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--records", type=int, default=1_000_000, metavar="N", help="records of the large file (default: 1000000)")
    add("--repeats", type=int, default=5, metavar="N", help="runs of each kind (default: 5)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the made-up text (default: 0)")
    folder = Path(gettempdir()) / "instruct_flamingo_convert"
    add(
        "--folder",
        type=Path,
        default=folder,
        metavar="DIR",
        help="where the files lie, a few GB (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    main()
