"""The raw rows of data files, streamed: JSON arrays, JSON Lines, Parquet, and gzip of these, told apart by content.

Memory stays flat however large a file is: text is decoded from a bounded buffer, one row after the other.
"""

import codecs
import gzip
import json
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, NoReturn, cast

CHUNK_BYTES = 1 << 20
"""How much is read at once."""
LONGEST_ROW = 1 << 26
"""Characters; a bracket that is never closed would otherwise pull a whole file into memory as one row."""
PARQUET_ROWS = 256
SHARD_KINDS = (".jsonl.gz", ".json.gz", ".parquet.gz", ".jsonl", ".json", ".parquet")
BYSTANDERS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".md")
"""What may lie beside shards: images, and the README of a published dataset."""

PARQUET_MAGIC = b"PAR1"
GZIP_MAGIC = b"\x1f\x8b"
LFS_POINTER = "version https://git-lfs"
EXCERPT_LENGTH = 40
# more than the longest thing that is wrong only because it is cut (-Infinity, \ud83d\ude00), and than an excerpt
MARGIN = 64

_SPACE = re.compile(r"[ \t\r\n]*")
_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class NoRecordsError(ValueError):
    """Data files that hold nothing, not even something wrong."""


def source_files(path: Path) -> list[Path]:
    """The one file at `path`, or the shard files of the folder at `path`, sorted by name.

    Raises ValueError for what is missing or empty, and for a folder that mixes kinds or holds data it would leave out.
    """
    try:
        files = _shards(path) if path.is_dir() else [path]
        if not path.exists():
            raise ValueError(f"{path} does not exist; check the path")
        empty = [file for file in files if file.is_file() and file.stat().st_size == 0]
    except OSError as error:
        raise ValueError(f"{path} cannot be listed: {error.strerror}; name a folder that you may read") from error
    if empty:
        raise NoRecordsError(f"{empty[0]} is empty; it must hold a JSON array, JSON Lines or Parquet")
    return files


def read_rows(file: Path) -> Iterator[object]:
    """The rows of one file, not yet understood; ValueError with file and place where it is broken."""
    try:
        with file.open("rb") as raw:
            head = raw.peek(len(PARQUET_MAGIC))
            if head.startswith(GZIP_MAGIC):
                yield from _unzipped_rows(file, gzip.GzipFile(fileobj=raw))
            elif head.startswith(PARQUET_MAGIC) or file.suffix.lower() == ".parquet":
                yield from _parquet_rows(file, raw)
            else:
                yield from _text_rows(file, raw)
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist; check the path") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{file} is cut short or damaged in its gzip data ({error}); fetch it again") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}; name a file that you may read") from error


def excerpt(text: str) -> str:
    """The start of `text`, quoted, for messages."""
    return repr(text if len(text) <= EXCERPT_LENGTH else text[: EXCERPT_LENGTH - 3] + "...")


def _shards(folder: Path) -> list[Path]:
    shards: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            _refuse_shards_below(folder, entry)
        elif kind := _shard_kind(entry):
            shards.setdefault(kind, []).append(entry)
        elif entry.suffix.lower() not in BYSTANDERS and entry.stem.upper() not in ("README", "LICENSE"):
            raise ValueError(f"{folder} holds {entry.name}, which is not {_kinds()}; convert it or move it away")
    if not shards:
        raise ValueError(f"{folder} holds no data files; it must hold files of one kind, {_kinds()}")
    if len(shards) > 1:
        found = " and ".join(sorted(shards))
        raise ValueError(f"{folder} mixes {found} files; keep one kind, or name a file")
    return next(iter(shards.values()))


def _refuse_shards_below(folder: Path, inner: Path) -> None:
    """Folders of images are left alone, one with data would silently be left out; its own folders are not searched."""
    if any(_shard_kind(entry) and not entry.name.startswith(".") for entry in inner.iterdir()):
        raise ValueError(f"{folder} holds data files in its folder {inner.name}; name that folder, or move them")


def _shard_kind(path: Path) -> str | None:
    return next((kind for kind in SHARD_KINDS if path.name.lower().endswith(kind)), None)


def _kinds() -> str:
    return ", ".join(SHARD_KINDS[:-1]) + f" or {SHARD_KINDS[-1]}"


def _text_rows(file: Path, stream: BinaryIO) -> Iterator[object]:
    text = _Text(file, stream)
    start = text.skip_space(0)
    match text.text[start : start + 1]:
        case "[":
            return _array_rows(text, start + 1)
        case "{":
            return _line_rows(text, start)
        case "":
            raise ValueError(f"{file} is empty; it must hold a JSON array or JSON Lines")
    while len(text.text) <= start + EXCERPT_LENGTH and not text.ended:
        start = text.refill(start)
    first = text.text[start : start + EXCERPT_LENGTH + 1]
    if first.startswith(LFS_POINTER):
        raise ValueError(f"{file} is a Git LFS pointer, not the data; run 'git lfs pull' where you cloned it")
    raise ValueError(f"{file} starts with {excerpt(first)}; it must hold a JSON array ('[') or JSON Lines ('{{')")


class _Text:
    """A window on the text of a stream that moves forward only, and knows the line and column of all in it."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self.file = file
        self.stream = stream
        self.text = ""
        self.ended = False
        self._undecoded = b""
        self._decoded_bytes = 0
        self._line = 1
        self._column = 1

    def refill(self, start: int) -> int:
        """Forget what is before `start` and read on: 0, which is where `start` is now."""
        self._line, self._column = self.place(start)
        rest = self.text[start:]
        if len(rest) > LONGEST_ROW:
            self.fail(
                f"A record is longer than {LONGEST_ROW} characters",
                0,
                "close its brackets, or give the records one by one",
            )
        # at least doubled, so that a long row is not decoded again for every chunk of it
        data = self.stream.read(max(CHUNK_BYTES, len(rest)))
        self.ended = not data
        self.text = rest + self._decode(data)
        return 0

    def skip_space(self, position: int) -> int:
        """The position of the next character that is no space; that of the end where there is none."""
        while True:
            position = cast("re.Match[str]", _SPACE.match(self.text, position)).end()
            if position < len(self.text) or self.ended:
                return position
            position = self.refill(position)

    def place(self, position: int) -> tuple[int, int]:
        """Line and column of a position, both from 1."""
        breaks = self.text.count("\n", 0, position)
        if not breaks:
            return self._line, self._column + position
        return self._line + breaks, position - self.text.rindex("\n", 0, position)

    def fail(
        self, problem: str, position: int, advice: str = "correct the JSON there", end: int | None = None
    ) -> NoReturn:
        """ValueError with the place of `position`, and what stands from there to `end`, or to the end of the file."""
        line, column = self.place(position)
        rest = self.text[position:end][: EXCERPT_LENGTH + 1]
        found = excerpt(rest) if rest.strip() or (end is None and not self.ended) else "the end"
        raise ValueError(f"{self.file}, line {line}, column {column}: {problem}, found {found}; {advice}")

    def _decode(self, data: bytes) -> str:
        data = self._undecoded + data
        try:
            text, length = codecs.utf_8_decode(data, "strict", self.ended)
        except UnicodeDecodeError as error:
            position = self._decoded_bytes + error.start
            raise ValueError(f"{self.file} is not UTF-8 text (byte {position}); save it as UTF-8") from error
        if not self._decoded_bytes:
            text = text.removeprefix("\ufeff")
        self._decoded_bytes += length
        self._undecoded = data[length:]
        return text


def _array_rows(text: _Text, position: int) -> Iterator[object]:
    position = text.skip_space(position)
    more = text.text[position : position + 1] != "]"
    while more:
        row, position = _value(text, position)
        yield row
        comma = _COMMA.match(text.text, position)
        if comma and comma.end() < len(text.text):
            position = comma.end()
            continue
        position = text.skip_space(position)
        more = text.text[position : position + 1] == ","
        if more:
            position = text.skip_space(position + 1)
        elif text.text[position : position + 1] != "]":
            text.fail("Expecting ',' delimiter", position)
    position = text.skip_space(position + 1)
    if position < len(text.text):
        text.fail("Extra data", position)


def _value(text: _Text, position: int) -> tuple[object, int]:
    """The JSON value at a position, and the position after it; reads on where the window may cut it."""
    while True:
        try:
            value, end = _DECODER.raw_decode(text.text, position)
        except json.JSONDecodeError as error:
            unsure = error.pos + MARGIN > len(text.text) or error.msg.startswith("Unterminated string")
            if text.ended or not unsure:
                text.fail(error.msg, error.pos)
        except (ValueError, RecursionError) as error:
            # Python's limit on the digits of an integer; where the window ends in the number, it may yet be a float
            digits = isinstance(error, ValueError) and text.text[-1] in "0123456789.eE+-"
            if text.ended or not digits:
                text.fail(_problem(error), position)
        else:
            # the digits of a number may go on after the window
            if text.ended or end + MARGIN <= len(text.text):
                return value, end
        position = text.refill(position)


def _line_rows(text: _Text, position: int) -> Iterator[object]:
    while True:
        # not splitlines(): U+2028 and its like are legal inside a JSON string
        end = text.text.find("\n", position)
        if end < 0 and not text.ended:
            position = text.refill(position)
            continue
        line = text.text[position : end if end >= 0 else None]
        if line.strip(" \t\r"):
            try:
                yield _DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                _fail_in_line(text, position, line, error)
        if end < 0:
            return
        position = end + 1


def _fail_in_line(text: _Text, position: int, line: str, error: ValueError | RecursionError) -> NoReturn:
    wrong = error.pos if isinstance(error, json.JSONDecodeError) else 0
    cut = not line[wrong:].strip()
    advice = "give each record one whole line, or put all in an array" if cut else "correct the JSON there"
    text.fail(_problem(error), position + wrong, advice, position + len(line))


def _problem(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "Brackets are nested too deeply" if isinstance(error, RecursionError) else "A number has too many digits"


def _unzipped_rows(file: Path, stream: gzip.GzipFile) -> Iterator[object]:
    if not stream.peek(len(PARQUET_MAGIC)).startswith(PARQUET_MAGIC):
        yield from _text_rows(file, cast("BinaryIO", stream))
        return
    with TemporaryFile() as plain:  # Parquet is read from its end
        shutil.copyfileobj(stream, plain)
        yield from _parquet_rows(file, cast("BinaryIO", plain))


def _parquet_rows(file: Path, stream: BinaryIO) -> Iterator[object]:
    # here, so that reading JSON does not wait for its import
    import pyarrow
    from pyarrow import parquet

    done = 0
    try:
        options = {"buffer_size": CHUNK_BYTES, "pre_buffer": False, "page_checksum_verification": True}
        with parquet.ParquetFile(stream, **options) as table:
            for batch in table.iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    yield row
                    done += 1
            expected = table.metadata.num_rows
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise ValueError(f"{file}, row {done + 1} or after: not sound Parquet ({reason}); fetch it again") from error
    if done != expected:
        raise ValueError(f"{file}, row {done + 1}: not sound Parquet (it promises {expected} rows); fetch it again")
