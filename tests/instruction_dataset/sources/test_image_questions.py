"""Questions about images: joined by id, asked in drawn words, and malformed sources refused by name."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest

from instruction_dataset.converting import Job
from instruction_dataset.sources import _questions, _statements, gqa, grid_3d, hme100k, nlvr2, vqav2, vsr, websrc
from instruction_dataset.sources._questions import as_sentence, beside

FIXTURES = Path(__file__).parents[1] / "fixtures"
SOURCES = {
    name: source
    for module in (vqav2, gqa, nlvr2, vsr, websrc, hme100k, grid_3d)
    for name, source in module.SOURCES.items()
}
BANKS = {"SHORT_ANSWER": 20, "REGION": 18, "WEB_QUESTION": 20, "WEB_PAGE": 20, "LATEX": 12}
HTML = "<html"

QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "v2_mscoco_train2014_annotations.json"


@pytest.fixture
def source(tmp_path):
    def copy(name):
        shutil.copytree(FIXTURES / name / "source", tmp_path / name)
        return tmp_path / name

    return copy


def edit(file, change):
    """Change a JSON file in place."""
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def edit_lines(file, number, **fields):
    """Change fields of one line of JSON Lines; None takes a field out."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[number] = {key: value for key, value in {**lines[number], **fields}.items() if value is not None}
    file.write_text("\n".join(map(json.dumps, lines)))


def convert(name, folder, split="train", **flags):
    job = Job(split=split, **flags)
    return list(SOURCES[name].convert(folder, job)), job


def refused(name, folder, *words, **flags):
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        convert(name, folder, **flags)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["vqav2", "gqa", "nlvr2", "vsr", "websrc", "hme100k"])
def test_the_same_seed_gives_the_same_records_and_another_seed_others(source, name):
    folder = source(name)
    first = convert(name, folder, seed=1)[0]
    assert first == convert(name, folder, seed=1)[0] != convert(name, folder, seed=2)[0]


def test_the_order_of_annotations_does_not_matter(source):
    folder = source("vqav2")
    before, _ = convert("vqav2", folder)
    edit(folder / ANNOTATIONS, lambda value: value["annotations"].reverse())
    assert convert("vqav2", folder)[0] == before


def test_what_one_side_of_a_join_lacks_is_counted(source):
    _, job = convert("vqav2", source("vqav2"))
    assert job.left_out == {
        "the answer is empty": 1,
        "a question has no annotation": 1,
        "an annotation has no question": 1,
    }


def test_an_annotation_that_is_there_twice_is_refused(source):
    folder = source("vqav2")
    edit(folder / ANNOTATIONS, lambda value: value["annotations"].append(value["annotations"][0]))
    refused("vqav2", folder, ANNOTATIONS, "record 7", "581929001")


def test_an_annotation_without_answers_is_refused_or_skipped(source):
    folder = source("vqav2")
    edit(folder / ANNOTATIONS, lambda value: value["annotations"][2].update(answers=[]))
    refused("vqav2", folder, ANNOTATIONS, "record 3", "'answers'")
    records, job = convert("vqav2", folder, skip_bad=True)
    assert len(records) == 3
    assert len(job.bad) == 1
    assert job.left_out["a question has no annotation"] == 2


def test_an_answer_that_is_no_text_is_refused(source):
    folder = source("vqav2")
    edit(folder / ANNOTATIONS, lambda value: value["annotations"][0]["answers"][0].update(answer=3))
    refused("vqav2", folder, ANNOTATIONS, "record 1", "'answers[0].answer'", "a string")


def test_a_question_without_an_image_is_refused(source):
    folder = source("vqav2")
    edit(folder / QUESTIONS, lambda value: value["questions"][1].pop("image_id"))
    refused("vqav2", folder, QUESTIONS, "record 2", "'image_id' is missing")


def test_a_question_that_holds_an_image_tag_is_refused(source):
    folder = source("gqa")
    edit(folder / "train_balanced_questions.json", lambda value: value["02930152"].update(question="<img_path>?"))
    refused("gqa", folder, "train_balanced_questions.json", "record 1", "<img_path>")


def test_a_file_of_another_split_is_missed_by_name(source):
    refused("gqa", source("gqa"), "val_balanced_questions.json does not exist", split="val")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": "maybe"}, "'label' must be True or False, not 'maybe'"),
        ({"identifier": "train-1-0"}, "'identifier' must be split-set-pair-sentence"),
        ({"directory": None}, "'directory' is missing"),
        ({"sentence": None}, "'sentence' is missing"),
    ],
)
def test_a_malformed_pair_is_refused_by_field(source, fields, message):
    folder = source("nlvr2")
    edit_lines(folder / "train.json", 1, **fields)
    refused("nlvr2", folder, "train.json, record 2", message)


def test_only_training_pairs_lie_in_numbered_folders(source):
    folder = source("nlvr2")
    shutil.copy(folder / "train.json", folder / "dev.json")
    records, _ = convert("nlvr2", folder, split="dev")
    assert "<img_path>dev/train-10171-0-img0.png<img_path>" in records[0].input


@pytest.mark.parametrize("seed", range(20))
def test_a_pair_keeps_left_before_right(source, seed):
    for record in convert("nlvr2", source("nlvr2"), seed=seed)[0]:
        assert record.input.index("eft") < record.input.rindex("img0.png") < record.input.rindex("img1.png")


def test_a_label_other_than_0_and_1_is_refused(source):
    folder = source("vsr")
    edit_lines(folder / "train.jsonl", 2, label=2)
    refused("vsr", folder, "train.jsonl, record 3", "'label' must be 0 or 1, not 2")


def test_every_statement_is_asked_in_forty_ways_that_answer_differently():
    assert len({question.text for question in _statements.QUESTIONS}) == len(_statements.QUESTIONS) == 40
    for question in _statements.QUESTIONS:
        assert question.text.count("{}") == 1
        assert question.yes != question.no


@pytest.mark.parametrize("statement", ["Two dogs run", "Two dogs run.", " Two dogs run . "])
def test_a_statement_is_asked_without_its_full_stop(statement):
    questions = [_statements.ask(statement, True, random.Random(seed))[0] for seed in range(200)]
    assert sum("Two dogs run." in question for question in questions) > 20
    assert sum('"Two dogs run"' in question for question in questions) > 20
    assert not any("run " in question for question in questions)


@pytest.mark.parametrize(("bank", "count"), BANKS.items())
def test_a_bank_has_as_many_prompts_as_it_should(bank, count):
    assert len(set(getattr(_questions, bank))) == len(getattr(_questions, bank)) == count


def test_a_prompt_stands_before_and_after_equally_often():
    job = Job(seed=0)
    texts = [beside("Q?", ("P.",), job.rng) for _ in range(400)]
    assert set(texts) == {"P. Q?", "Q? P."}
    assert 160 < texts.count("P. Q?") < 240


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (" net ", "Net."),
        ("u.s.", "U.s."),
        ("what?", "What?"),
        ("", ""),
        ('he says "go."', 'He says "go."'),
        ("é", "É."),
        ("a cat ,", "A cat."),
        ("a dog:", "A dog."),
        ("so; ", "So."),
        (",", ",."),
    ],
)
def test_an_answer_becomes_a_sentence(text, sentence):
    assert as_sentence(text) == sentence


def test_a_page_gives_its_html_once_and_as_in_2023_again_and_again(source):
    folder = source("websrc")
    table = folder / "auto/03/dataset.csv"
    row = table.read_text().splitlines()[2]
    table.write_text("\n".join([table.read_text().splitlines()[0], *[row] * 200]))
    count = [
        sum(record.output.startswith(HTML) for record in convert("websrc", folder, as_2023=flag)[0])
        for flag in (False, True)
    ]
    assert count[0] == 1
    assert 8 < count[1] < 40


def test_as_in_2023_the_last_question_of_a_site_and_answers_that_end_in_a_full_stop_are_missing(source):
    folder = source("websrc")
    now, then = ([record.output for record in convert("websrc", folder, as_2023=flag)[0]] for flag in (False, True))
    questions = [answer for answer in now if not answer.startswith(HTML)]
    assert [answer for answer in questions if answer not in then] == ["Drive safely.", "Colour 11.", "Page 11."]


def test_the_last_row_of_a_table_and_an_answer_with_a_full_stop_are_kept(source):
    outputs = [record.output for record in convert("websrc", source("websrc"))[0]]
    assert outputs[-1] == "Page 11."
    assert "Drive safely." in outputs


def test_a_split_reads_its_own_sites_alone(source):
    assert [record.output for record in convert("websrc", source("websrc"), split="dev")[0]] == ["Read."]


def test_a_short_id_of_a_page_is_refused(source):
    folder = source("websrc")
    table = folder / "book/01/dataset.csv"
    table.write_text(table.read_text().replace("bo010000100000", "bo01"))
    refused("websrc", folder, "book/01/dataset.csv, record 1", "'id'", "bo01")


def test_a_line_without_a_formula_is_refused(source):
    folder = source("hme100k")
    (folder / "train_labels.txt").write_text("a.jpg\tx\nb.jpg x\n")
    refused("hme100k", folder, "train_labels.txt, record 2", "a tab")


def test_a_byte_order_mark_and_blank_lines_are_passed_over(source):
    folder = source("hme100k")
    labels = folder / "train_labels.txt"
    before, _ = convert("hme100k", folder)
    labels.write_text("\n" + labels.read_text(encoding="utf-8") + "\n \n", encoding="utf-8-sig")
    assert convert("hme100k", folder)[0] == before


def test_labels_that_are_no_text_are_refused(source):
    folder = source("hme100k")
    (folder / "train_labels.txt").write_bytes(b"a.jpg\t\xff\n")
    refused("hme100k", folder, "train_labels.txt is not UTF-8")


@pytest.mark.parametrize(
    ("symbols", "latex"),
    [
        (r"\angle A B", r"\angle AB"),
        (r"\angle 1", r"\angle1"),
        (r"\frac { a } { b }", r"\frac{a}{b}"),
        (r"\\ a", r"\\a"),
        (r"\sin \alpha x", r"\sin\alpha x"),
        ("", ""),
    ],
)
def test_a_formula_keeps_only_the_spaces_that_end_a_command(symbols, latex):
    assert hme100k.joined(symbols.split()) == latex


def pictures(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    return folder


def test_a_scene_is_found_by_its_number_in_any_folder(source, tmp_path):
    images = pictures(tmp_path / "images", "x/y/3.png", "12.png", "notes.png")
    records, job = convert("grid-3d", source("grid-3d"), image_root=images)
    assert records[0].input.startswith("<img_path>x/y/3.png<img_path>")
    assert job.left_out["a place of the split has no question"] == 1
    assert job.left_out["the image is not there"] == 1


def test_two_scenes_of_one_number_are_refused(source, tmp_path):
    images = pictures(tmp_path / "images", "a/3.png", "b/3.png")
    refused("grid-3d", source("grid-3d"), "a/3.png and b/3.png", image_root=images)


def test_scenes_need_their_folder(source):
    refused("grid-3d", source("grid-3d"), "--image_root")


def test_a_place_that_is_no_number_is_refused(source, tmp_path):
    folder = source("grid-3d")
    (folder / "train_idxs.json").write_text('["a"]')
    refused("grid-3d", folder, "train_idxs.json, record 1", "whole number", image_root=tmp_path)
