"""Refusals: images that the model shall not talk about, a polite no to whatever is asked of them."""

import string
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

from instruction_dataset.converting import Job, Row, Source, rows
from instruction_dataset.dialogue import ASSISTANT, refuse_tags
from instruction_dataset.readers import files_of
from instruction_dataset.records import Record, image_tag, parse_record, split_images

IMAGES, PROMPTS, ANSWER = "images", "prompts.json", "answer.txt"
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
REFUSAL = "I am sorry, but I cannot talk about this image. I am glad to help you with another one."
PROMPTS_HELD = 10_000
NOISE_SHARE = 0.2
NOISE_CHARACTERS = string.ascii_letters + string.digits + " .,;:!?'\"()+-*/=&%$@_"
NOISE_LENGTHS = range(4, 65)


def convert(source: Path, job: Job) -> Iterator[Record]:
    """One record per image: a prompt that was written for another image, or noise in its place, and the refusal."""
    prompts = _prompts(source, job.rng)
    places = [path.relative_to(source / IMAGES) for path in sorted((source / IMAGES).rglob("*")) if path.is_file()]
    images = [place.as_posix() for place in places if _is_image(place)]
    if not images:
        raise ValueError(f"{source / IMAGES} holds no image ({', '.join(IMAGE_ENDINGS)}); put those to refuse there")
    found = (Row(image, source / IMAGES, number) for number, image in enumerate(images, start=1))
    return job.each(found, partial(records, prompts=prompts, answer=_answer(source), job=job))


def records(row: Row, prompts: list[tuple[str, str]], answer: str, job: Job) -> Iterator[Record]:
    """The record of an image, whose path the row is."""
    before, after = job.rng.choice(prompts)
    if job.rng.random() < NOISE_SHARE:
        before, after = "", _noise(job.rng)
    yield Record(f"{before}{image_tag(row.value)}{after}", answer)


def _is_image(place: Path) -> bool:
    """Whether the name of a file is that of an image, and not hidden, nor in a hidden folder."""
    return place.suffix.lower() in IMAGE_ENDINGS and not any(part.startswith(".") for part in place.parts)


def _prompts(source: Path, rng: Random) -> list[tuple[str, str]]:
    """What stands before and after the image in records of one image and one turn; a sample of them where there are many."""
    held: list[tuple[str, str]] = []
    fitting = 0
    (file,) = files_of(source, PROMPTS, f"{PROMPTS}l")
    for row in rows(file):
        prompt = _prompt(row)
        if prompt is None:
            continue
        fitting += 1
        # every one that fits is as likely to be held in the end
        place = rng.randrange(fitting)
        if fitting <= PROMPTS_HELD:
            held.append(prompt)
        elif place < PROMPTS_HELD:
            held[place] = prompt
    if not held:
        raise ValueError(f"{file} holds no prompt with one image; make it of records about images")
    return held


def _prompt(row: Row) -> tuple[str, str] | None:
    try:
        text = parse_record(row.value).input
        pieces, _ = split_images(text)
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from error
    # a dialogue would tell of an image that is no longer there
    return None if len(pieces) != 2 or ASSISTANT in text else (pieces[0], pieces[1])


def _answer(source: Path) -> str:
    """The user's words, where the folder has some."""
    file = source / ANSWER
    if not file.exists():
        return REFUSAL
    try:
        answer = refuse_tags(file.read_text(encoding="utf-8-sig").strip())
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text; save it as UTF-8") from error
    if not answer:
        raise ValueError(f"{file} is empty; write the refusal into it, or take it away")
    return answer


def _noise(rng: Random) -> str:
    return "".join(rng.choices(NOISE_CHARACTERS, k=rng.choice(NOISE_LENGTHS)))


SOURCES = {
    "refusal": Source(
        convert=convert,
        files=f"{IMAGES}/ with the images to refuse, {PROMPTS} (records of this format), {ANSWER} with your own words, "
        "if you like",
        origin="made of your own images and prompts",
        images=f"yours; --image_root is the folder {IMAGES}/",
    )
}
