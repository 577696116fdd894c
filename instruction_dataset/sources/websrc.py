"""WebSRC: questions about screenshots of web pages, and the HTML of these pages."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows_at
from instruction_dataset.dialogue import refuse_tags
from instruction_dataset.readers import csv_rows
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._questions import WEB_PAGE, WEB_QUESTION, as_sentence, beside

SPLITS = ("train", "dev")
HTML_SHARE = 0.1
"""How likely a question brings the HTML of its page along, which has dozens of questions."""


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per question, and for most pages one that asks for their HTML.

    With `as_2023` the last question of each site is missing, as are answers that end in a full stop, which were empty
    then, and a page may be asked for again.
    """
    tables = {site_of(table): table for table in sorted(source.glob("*/*/dataset.csv"))}
    for row in rows_at(source / "dataset_split_release.json", job.split):
        table = tables.get(str(row.value))
        if table is None:
            job.leave_out("a site of the split is not there")
        else:
            make = partial(records, folder=table.parent, source=source, pages=set(), job=job)
            questions = csv_rows(table)
            yield from job.each((row for row, _ in pairwise(questions)) if job.as_2023 else questions, make)


def site_of(table: Path) -> str:
    """What the split calls a site: two letters of its domain, and its number, as `au08`."""
    return table.parent.parent.name[:2] + table.parent.name


def records(row: Row, folder: Path, source: Path, pages: set[str], job: Job) -> Iterator[Record]:
    """The records of a question; `pages` are those whose HTML has been asked for."""
    page = page_of(row)
    html = folder / "processed_data" / f"{page}.html"
    image = image_tag(html.relative_to(source).with_suffix(".png").as_posix())
    question, answer = refuse_tags(row.text("question")), row.text("answer")
    was_empty = job.as_2023 and answer.endswith(".")
    yield Record(image + beside(question, WEB_QUESTION, job.rng), "" if was_empty else as_sentence(answer))
    if job.rng.random() >= HTML_SHARE or (page in pages and not job.as_2023):
        return
    pages.add(page)
    if html.is_file():
        yield Record(image + job.rng.choice(WEB_PAGE), read(html))
    else:
        job.leave_out("the HTML of a page is not there")


def page_of(row: Row) -> str:
    """The name of the page that a question is about, a part of the question's id."""
    number = row.text("id")
    if len(number) < 9:
        raise ValueError(f"field 'id' must be two letters and the number of a page and a question, not {number!r}")
    return number[2:9]


def read(html: Path) -> str:
    """The text of a page; ValueError where it is no UTF-8."""
    try:
        return html.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{html} is not UTF-8 text; save it as UTF-8") from error


SOURCES = {
    "websrc": Source(
        convert=convert,
        files="dataset_split_release.json, {domain}/{site}/dataset.csv, {domain}/{site}/processed_data/",
        origin="https://x-lance.github.io/WebSRC",
        images="WebSRC, beside its HTML in processed_data/",
        splits=SPLITS,
        as_2023=True,
    ),
}
