"""ShareGPT: dialogues with ChatGPT that their users shared, some as the HTML of the page."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.dialogue import expand
from instruction_dataset.readers import files_of
from instruction_dataset.records import Record
from instruction_dataset.sources._conversations import Side, joined_turns
from instruction_dataset.sources._markup import as_markdown, is_html

SIDES: dict[str, Side] = {
    **dict.fromkeys(("human", "user", "system"), "human"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard"), "assistant"),
}


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per answer, with the dialogue before it."""
    files = files_of(source, "sg_90k_part*.json", "sg_52k.json", "ShareGPT_V*.json")
    return job.each(chain.from_iterable(map(rows, files)), partial(records, job))


def records(job: Job, row: Row) -> Iterator[Record]:
    """The records of a dialogue, or of a piece of one."""
    return expand(joined_turns(row, job, SIDES, without_html))


def without_html(side: Side, text: str) -> str:
    """A message without the markup of the page; what a human wrote may be HTML that is asked about, and stays."""
    return as_markdown(text) if side == "assistant" and is_html(text) else text


SOURCES = {
    "sharegpt": Source(
        convert=convert,
        files="sg_90k_part1.json and sg_90k_part2.json, or sg_52k.json, or a cleaned file of the same shape",
        origin="Hugging Face RyokoAI/ShareGPT52K",
        records=45_464,
        licence="CC0 1.0",
    )
}
