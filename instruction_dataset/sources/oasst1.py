"""OpenAssistant Conversations: trees of messages in many languages, the replies to each ranked by people."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from math import inf
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.dialogue import last_turn, refuse_tags
from instruction_dataset.readers import files_of
from instruction_dataset.records import Record

PATTERNS = ("*oasst_ready.trees.jsonl*", "*oasst_ready.messages.jsonl*", "oasst1*.json")
ROLES = ("prompter", "assistant")
FORMS = ("prompt", "message_id", "instruction")
"""A field that only trees have, only messages, and only instructions."""
KEPT = ("text", "role", "rank", "deleted", "message_id", "parent_id")

Replies = Callable[[Row], list[Row]]
"""Finds the replies to a message."""


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per tree; of messages, all are held in memory."""
    files = files_of(source, *PATTERNS)
    everything = chain.from_iterable(map(rows, files))
    match _form(files):
        case "prompt":
            return job.each(everything, lambda tree: records(job, _nested, tree.row("prompt")))
        case "message_id":
            roots, replies = _forest(job, everything)
            return job.each(roots, partial(records, job, replies))
    return job.each(everything, instruction)


def records(job: Job, replies: Replies, root: Row) -> Iterator[Record]:
    """The last answer on the path of the best replies, with the dialogue before it."""
    texts = [_said(root, message, ROLES[depth % 2]) for depth, message in enumerate(best_path(root, replies))]
    if len(texts) < 2:
        job.leave_out("the prompt has no reply")
    else:
        yield last_turn(list(zip(texts[::2], texts[1::2])))


def instruction(row: Row) -> Iterator[Record]:
    """The record of a row with `instruction`, `input` and `output`, as some pass the best paths on."""
    parts = [row.text("instruction"), row.text("input") if "input" in row else ""]
    yield Record(refuse_tags(" ".join(filter(None, parts))), row.text("output"))


def best_path(root: Row, replies: Replies) -> Iterator[Row]:
    """A message, its best reply, the best reply to that, and so on; the first of equal or unranked ones."""
    message: Row | None = root
    while message is not None:
        yield message
        living = [reply for reply in replies(message) if not _is_deleted(reply)]
        message = min(living, key=lambda reply: reply.number_of("rank") if "rank" in reply else inf, default=None)


def _form(files: list[Path]) -> str:
    """The field that tells the form of all rows, taken from the first that has one; empty where none has."""
    return next((form for file in files for row in rows(file) for form in FORMS if form in row), "")


def _said(root: Row, message: Row, role: str) -> str:
    try:
        if message.text("role") != role:
            raise ValueError(f"field {message.path + 'role'!r} must be {role!r}, not {message.text('role')!r}")
        return refuse_tags(message.text("text"))
    except ValueError as error:
        if message.number == root.number:
            raise
        raise ValueError(f"its reply in record {message.number}: {error}") from error


def _is_deleted(message: Row) -> bool:
    return "deleted" in message and message.value["deleted"] is True


def _nested(message: Row) -> list[Row]:
    return message.rows("replies") if "replies" in message else []


def _forest(job: Job, messages: Iterable[Row]) -> tuple[list[Row], Replies]:
    """The messages that reply to none, and how to find the replies to one; what no such message leads to is left out."""
    children: dict[str | None, list[Row]] = {None: []}
    found = job.index(messages, _identified)
    for parent, message in found.values():
        children.setdefault(parent, []).append(message)

    def replies(message: Row) -> list[Row]:
        return children.get(message.text("message_id"), [])

    reached, level = 0, children[None]
    while level:
        reached += len(level)
        level = [reply for message in level for reply in replies(message)]
    for _ in range(len(found) - reached):
        job.leave_out("no prompt leads to the message")
    return children[None], replies


def _identified(row: Row) -> tuple[str, tuple[str | None, Row]]:
    """The identifier of a message, what it replies to, and those of its fields that are of use here."""
    message = row._replace(value={key: row.value[key] for key in KEPT if key in row})
    return row.text("message_id"), (row.text("parent_id") if "parent_id" in row else None, message)


SOURCES = {
    "oasst1": Source(
        convert=convert,
        files="2023-04-12_oasst_ready.trees.jsonl.gz, or its messages, or a file of instruction, input and output",
        origin="Hugging Face OpenAssistant/oasst1",
        records=5_256,
        licence="Apache-2.0",
    )
}
