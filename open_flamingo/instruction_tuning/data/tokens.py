"""Records as token ids on disk: each dataset is tokenized once per tokenizer and template, and then only copied from.

A row holds a record's first prompt twice (as it begins a conversation, and as it goes on with one), then everything
after it, whose parts (answer, prompt, answer, ...) have the lengths `spans`. `sizes.bin` holds what packing asks for.
"""

import hashlib
import json
import mmap
import os
import struct
import weakref
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from instruction_dataset.records import Record
from instruction_dataset.store import ABOUT, BATCH, RecordStore, build_once, default_cache
from open_flamingo.instruction_tuning.data.conversation import Turn, TurnTokenizer

VERSION = "1"
SIZES = "sizes.bin"
ROW = struct.Struct("4i")
RELEASE_EVERY = 8
"""Rows that are read between two releases of the mapped pages."""
IDS = ("first", "further", "rest", "spans")
SCHEMA = pa.schema([(name, pa.list_(pa.int32())) for name in IDS] + [("images", pa.list_(pa.string()))])
FIRST, FURTHER, PROMPT, IMAGES = range(4)
"""What `sizes` holds of a record: tokens of the whole record in its two forms, tokens of its first prompt, images."""


def fits(sizes: np.ndarray, max_length: int, max_img: int, *, whole: bool = False) -> np.ndarray:
    """True for records that can be trained on: their prompt leaves room for an answer, their images are not too many.

    With `whole` the answer has to fit too. `sizes` (..., 4) as in TokenStore.
    """
    possible = (sizes[..., PROMPT] < max_length) & (sizes[..., IMAGES] <= max_img)
    return possible & (sizes[..., FIRST] <= max_length) if whole else possible


class TokenStore:
    """The tokens of one dataset, on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reads = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.folder,)

    def __len__(self) -> int:
        return (self.folder / SIZES).stat().st_size // ROW.size

    def sizes(self) -> np.ndarray:
        """The lengths and numbers of images of all records, read anew: (records, 4)."""
        return np.fromfile(self.folder / SIZES, dtype=np.int32).reshape(-1, 4)

    def size(self, index: int) -> tuple[int, ...]:
        """The row of one record in `sizes`."""
        return ROW.unpack(os.pread(self._sizes_file.fileno(), ROW.size, index * ROW.size))

    @cached_property
    def _sizes_file(self) -> BinaryIO:
        file = (self.folder / SIZES).open("rb")
        weakref.finalize(self, file.close)
        return file

    @cached_property
    def _map(self) -> mmap.mmap:
        with (self.folder / "tokens.arrow").open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @cached_property
    def _batches(self) -> list[dict[str, Any]]:
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map)))
        return [_views(reader.get_batch(i)) for i in range(reader.num_record_batches)]

    def _release(self) -> None:
        """Let go of the mapped pages now and then: they stay in the system's cache, and this process small."""
        self._reads += 1
        if self._reads % RELEASE_EVERY == 0:
            self._map.madvise(mmap.MADV_DONTNEED)

    def images(self) -> Iterator[tuple[int, list[str]]]:
        """The image paths of each record that has some, with its number."""
        for number, columns in enumerate(self._batches):
            self._release()
            for row, paths in enumerate(columns["images"].to_pylist(), start=number * BATCH):
                if paths:
                    yield row, paths

    def turns(self, index: int, *, first: bool) -> list[Turn]:
        """A record as turns, the first of which begins a conversation or goes on with one."""
        batch, row = divmod(index, BATCH)
        columns = self._batches[batch]
        prompt, rest, spans = (_row(columns[name], row) for name in ("first" if first else "further", "rest", "spans"))
        ends = [0, *accumulate(spans)]
        parts = [prompt, *(rest[start:end] for start, end in pairwise(ends))]
        images = columns["images"][row].as_py()
        turns = [Turn(p, a, []) for p, a in zip(parts[::2], parts[1::2], strict=True)]
        self._release()
        turns[0].images.extend(images)  # in reading order: which turn shows which is said by the `<image>` tokens
        return turns


def open_tokens(
    records: RecordStore, turns: TurnTokenizer, cache: Path | None = None, *, quiet: bool = True
) -> TokenStore:
    """The tokens of a dataset, built first if this tokenizer and template never met it.

    Raises ValueError naming file and record where an image tag is malformed.
    """
    key = hashlib.sha256(f"{VERSION} {records.key} {turns.fingerprint}".encode()).hexdigest()[:32]
    folder = (cache or default_cache()) / "tokens" / key
    build_once(folder, lambda partial: _build(records, turns, partial, quiet))
    return TokenStore(folder)


def _build(records: RecordStore, turns: TurnTokenizer, folder: Path, quiet: bool) -> None:
    rows = enumerate(records)
    with (
        pa.OSFile(str(folder / "tokens.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
        (folder / SIZES).open("wb") as sizes,
        tqdm(total=len(records), desc=f"tokenizing {records.files[0].name}", unit=" records", disable=quiet) as bar,
    ):
        while batch := list(islice(rows, BATCH)):
            tokenized = list(_tokenized(batch, records, turns))
            writer.write_batch(_arrow(tokenized))
            sizes.writelines(ROW.pack(*_sizes(*forms)) for forms in tokenized)
            bar.update(len(batch))
    (folder / ABOUT).write_text(json.dumps({"records": records.key, "template": turns.template}) + "\n")


def _tokenized(
    batch: list[tuple[int, Record]], records: RecordStore, turns: TurnTokenizer
) -> Iterator[tuple[list[Turn], list[Turn]]]:
    """Each record's turns in both forms; all texts of the batch are tokenized at once, equal ones once."""
    texts: list[str] = []

    def collect(text: str) -> list[int]:
        texts.append(text)
        return []

    for index, record in batch:
        try:
            for first in (True, False):
                turns.turns(record, first=first, encode=collect)
        except ValueError as error:
            raise ValueError(f"{records.where(index)}: {error}") from error
    encode = turns.encoder(texts)
    for _, record in batch:
        yield turns.turns(record, first=True, encode=encode), turns.turns(record, first=False, encode=encode)


def _sizes(first: list[Turn], further: list[Turn]) -> tuple[int, int, int, int]:
    images = sum(len(turn.images) for turn in first)
    return sum(map(len, first)), sum(map(len, further)), len(first[0].prompt), images


def _arrow(batch: list[tuple[list[Turn], list[Turn]]]) -> pa.RecordBatch:
    rows = []
    for first, further in batch:
        parts = [part for turn in first for part in (turn.prompt, turn.answer)][1:]
        rest = [token for part in parts for token in part]
        images = [image for turn in first for image in turn.images]
        rows.append((first[0].prompt, further[0].prompt, rest, [len(part) for part in parts], images))
    columns = [_list_array(column) for column in list(zip(*rows, strict=True))[:-1]]
    images = pa.array([row[-1] for row in rows], type=pa.list_(pa.string()))
    return pa.record_batch([*columns, images], schema=SCHEMA)


def _list_array(rows: tuple[list[int], ...]) -> pa.ListArray:
    offsets = np.array([0, *accumulate(len(row) for row in rows)], dtype=np.int32)
    values = np.array(list(chain.from_iterable(rows)), dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _views(batch: pa.RecordBatch) -> dict[str, Any]:
    """The columns of a batch without copies: (values, offsets) of ids, and the list of image paths."""
    views: dict[str, Any] = {"images": batch["images"]}
    for name in IDS:
        views[name] = (batch[name].values.to_numpy(), batch[name].offsets.to_numpy())
    return views


def _row(column: tuple[np.ndarray, np.ndarray], row: int) -> list[int]:
    values, offsets = column
    return values[offsets[row] : offsets[row + 1]].tolist()
