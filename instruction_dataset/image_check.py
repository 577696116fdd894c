"""Records left out for their images: what is missing or damaged is counted by kind, decoded by several processes."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from instruction_dataset.converting import Job
from instruction_dataset.findings import Kind
from instruction_dataset.pictures import Opener, look_at_all, processes
from instruction_dataset.records import Record, split_images
from instruction_dataset.scan import ImageUse, Seen

RECORDS_AT_ONCE = 2048
CHUNKS_AHEAD = 4
"""Per process."""
KINDS = list(Kind)
SOUND = len(KINDS)


@contextmanager
def checking(records: Iterable[Record], job: Job, workers: int, limit: int | None = None) -> Iterator[Iterator[Record]]:
    """The records whose images training can open, in their order; the others are counted in the job, by what is wrong.

    No more records are read than it takes to find `limit` of them.
    """
    # here, since it takes seconds to import; and before the processes start, so that they have it too
    from open_flamingo.instruction_tuning.data.images import open_image

    with processes(workers) as pool:
        yield _Check(job, pool, open_image, CHUNKS_AHEAD * workers).sound(records, limit)


class _Check:
    """What is known of images by now: a byte and a digest for each, so that memory stays flat."""

    def __init__(self, job: Job, pool: ProcessPoolExecutor, open_image: Opener, window: int) -> None:
        self._job, self._pool, self._open_image, self._window = job, pool, open_image, window
        self._folders = [folder for folder in (job.image_root, job.image_output) if folder is not None]
        self._seen = Seen()
        self._verdicts = bytearray()

    def sound(self, records: Iterable[Record], limit: int | None) -> Iterator[Record]:
        """The records without a bad image, at most `limit`."""
        records, found = iter(records), 0
        while batch := list(islice(records, RECORDS_AT_ONCE if limit is None else min(RECORDS_AT_ONCE, limit - found))):
            named = [[str(self._place(path)) for path in _images(record)] for record in batch]
            self._look(path for paths in named for path in paths)
            for record, paths in zip(batch, named, strict=True):
                if problem := next(filter(None, map(self._problem, paths)), None):
                    self._job.leave_out(problem)
                else:
                    found += 1
                    yield record

    def _look(self, paths: Iterable[str]) -> None:
        """Decode the images that are new."""
        known = len(self._verdicts)
        new = [path for path in dict.fromkeys(paths) if self._seen.first(path, len(self._seen)) >= known]
        uses = (ImageUse(0, "", path) for path in new)
        for _, verdict in look_at_all(self._pool, uses, self._open_image, self._window):
            bad = verdict is not None and verdict[0].fails
            self._verdicts.append(KINDS.index(verdict[0]) if verdict and bad else SOUND)

    def _problem(self, path: str) -> str | None:
        number = self._verdicts[self._seen.first(path, 0)]
        return None if number == SOUND else KINDS[number].title

    def _place(self, path: str) -> Path:
        """Where an image lies: made ones lie apart from those that were there before."""
        places = [folder / path for folder in self._folders]
        return next((place for place in places if place.is_file()), places[0])


def _images(record: Record) -> list[str]:
    return [path for text, _ in record.turns for path in split_images(text)[1]]
