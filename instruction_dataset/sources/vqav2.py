"""VQAv2 and OK-VQA: questions about COCO images, each with ten people's short answers."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from instruction_dataset.converting import Job, Row, Source, rows_at
from instruction_dataset.dialogue import refuse_tags
from instruction_dataset.readers import coco_2014
from instruction_dataset.records import Record, image_tag
from instruction_dataset.sources._questions import SHORT_ANSWER, as_sentence, beside

SPLITS = ("train", "val")


def convert(source: Path, job: Job, *, version: str) -> Iterator[Record]:
    """One record per question, with the first person's answer; file names begin with the version, such as `v2_`."""
    questions = source / f"{version}OpenEnded_mscoco_{job.split}2014_questions.json"
    annotations = source / f"{version}mscoco_{job.split}2014_annotations.json"
    answers = job.index(rows_at(annotations, "annotations"), first_answer)
    yield from job.each(rows_at(questions, "questions"), partial(records, answers=answers, job=job))
    for _ in answers:
        job.leave_out("an annotation has no question")


def first_answer(annotation: Row) -> tuple[int, str]:
    """The id of a question, and what the first person answered."""
    answers = annotation.rows("answers")
    if not answers:
        raise ValueError("field 'answers' is empty; it must hold an answer")
    return annotation.number_of("question_id"), answers[0].text("answer")


def records(question: Row, answers: dict[int, str], job: Job) -> Iterator[Record]:
    """The record of a question; its answer is taken out of the answers."""
    answer = answers.pop(question.number_of("question_id"), None)
    if answer is None:
        job.leave_out("a question has no annotation")
        return
    image = image_tag(coco_2014(job.split, question.number_of("image_id")))
    text = refuse_tags(question.text("question"))
    yield Record(image + beside(text, SHORT_ANSWER, job.rng), as_sentence(answer))


SOURCES = {
    "vqav2": Source(
        convert=partial(convert, version="v2_"),
        files="v2_OpenEnded_mscoco_{split}2014_questions.json, v2_mscoco_{split}2014_annotations.json",
        origin="https://visualqa.org/download.html",
        images="COCO train2014, val2014",
        licence="CC BY 4.0",
        splits=SPLITS,
    ),
    "ok-vqa": Source(
        convert=partial(convert, version=""),
        files="OpenEnded_mscoco_{split}2014_questions.json, mscoco_{split}2014_annotations.json",
        origin="https://okvqa.allenai.org/download.html",
        images="COCO train2014, val2014",
        licence="CC BY 4.0",
        splits=SPLITS,
    ),
}
