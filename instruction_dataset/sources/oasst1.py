"""OpenAssistant Conversations: trees of messages in many languages, the replies to each ranked by people."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from math import inf
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.dialogue import last_turn, refuse_tags
from instruction_dataset.readers import files_of, peek
from instruction_dataset.records import Record

PATTERNS = ("*oasst_ready.trees.jsonl*", "*oasst_ready.messages.jsonl*", "oasst1*.json")
ROLES = ("prompter", "assistant")
KEPT = ("text", "role", "rank", "deleted", "message_id", "parent_id")

Replies = Callable[[Row], list[Row]]
"""Finds the replies to a message."""


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per tree; of messages, all are held in memory."""
    first, everything = peek(chain.from_iterable(map(rows, files_of(source, *PATTERNS))))
    if first is not None and "prompt" in first:
        return job.each(everything, lambda tree: records(job, _nested, tree.row("prompt")))
    if first is not None and "message_id" in first:
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
    """The messages that reply to none, and how to find the replies to one; a reply to a lost message is left out."""
    roots: list[Row] = []
    children: dict[str, list[Row]] = defaultdict(list)
    identifiers = set()
    for row in messages:
        message = row._replace(value={key: row.value[key] for key in KEPT if key in row})
        siblings = children[str(message.value["parent_id"])] if "parent_id" in message else roots
        siblings.append(message)
        identifiers.add(_identifier(message))
    for lost in children.keys() - identifiers:
        for _ in children[lost]:
            job.leave_out("the message replies to one that is not there")
    return roots, lambda message: children.get(_identifier(message), [])


def _identifier(message: Row) -> str:
    return str(message.value.get("message_id"))


SOURCES = {
    "oasst1": Source(
        convert=convert,
        files="2023-04-12_oasst_ready.trees.jsonl.gz, or its messages, or a file of instruction, input and output",
        origin="Hugging Face OpenAssistant/oasst1",
        records=5_256,
        licence="Apache-2.0",
    )
}
