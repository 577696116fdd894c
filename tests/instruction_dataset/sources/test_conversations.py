"""Dialogues of human and gpt: what is malformed is refused with its place, and each source keeps to its own rules."""

import json
import re

import pytest
from PIL import Image

from instruction_dataset.converting import Job
from instruction_dataset.sources import lamm, llava, llavar, sharegpt, svit, toolbench, wizardlm

IMAGE_DATA = [{"image_id": 7, "url": "https://example.org/VG_100K_2/7.jpg"}]
CONVERSATION = llava.SOURCES["llava-conversation-58k"]


def said(*values, sides=("human", "gpt")):
    return [{"from": sides[i % 2], "value": value} for i, value in enumerate(values)]


def row(*values, **fields):
    return {"id": "1", "image": "1.jpg", "conversations": said(*values), **fields}


@pytest.fixture
def converted(tmp_path):
    """Writes rows to a file and converts it: the records, each as a pair."""

    def convert(source, rows, name="conversation_58k.json", job=None):
        (tmp_path / name).write_text(json.dumps(rows))
        (tmp_path / "image_data.json").write_text(json.dumps(IMAGE_DATA))
        return [(record.input, record.output) for record in source.convert(tmp_path, job or Job())]

    return convert


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("text", "a record must be an object, not a string"),
        ({"conversations": said("q", "a")}, "field 'image' is missing"),
        ({"image": 5, "conversations": said("q", "a")}, "field 'image' must be a string, not a number"),
        (row(conversations=[]), "field 'conversations' must alternate between question and answer, not []"),
        ({"image": "1.jpg"}, "field 'conversations' is missing"),
        (row(conversations="q"), "field 'conversations' must be an array, not a string"),
        (row(conversations=["q"]), "conversations[0] must be an object, not a string"),
        (row("q"), "field 'conversations' must alternate between question and answer, not ['human']"),
        (row("q", "a", "q"), "not ['human', 'gpt', 'human']"),
        (row(conversations=said("a", "q", sides=("gpt", "human"))), "not ['gpt', 'human']"),
        (row(conversations=[{"value": "q"}]), "field 'conversations[0].from' is missing"),
        (row(conversations=[{"from": "bot", "value": "q"}]), "'conversations[0].from' must be one of human, gpt, not 'bot'"),
        (row("q", None), "field 'conversations[1].value' must be a string, not null"),
        (row("q", "see <img_path>b.jpg<img_path>"), "its text holds '<img_path>'"),
        (row("q", "a", image="a<img_path>b"), "holds '<img_path>', which marks where a path ends"),
    ],
)  # fmt: skip
def test_a_malformed_dialogue_is_refused_with_file_record_and_field(converted, tmp_path, bad, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        converted(CONVERSATION, [row("q", "a"), bad])
    assert str(refusal.value).startswith(f"{tmp_path / 'conversation_58k.json'}, record 2: ")


def test_bad_rows_are_skipped_whole_where_that_is_asked_for(converted):
    job = Job(skip_bad=True)
    records = converted(CONVERSATION, [row("q1", "a1", "q2", 3), row("q", "a")], job=job)
    assert [answer for _, answer in records] == ["a"]
    assert len(job.bad) == 1


def test_a_missing_file_is_refused_with_the_names_it_may_have(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} holds no conversation_58k.json; check --source")):
        CONVERSATION.convert(tmp_path, Job())


def test_a_file_of_any_name_may_be_given_itself(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([row("q", "a")]))
    assert [record.output for record in CONVERSATION.convert(file, Job())] == ["a"]


def test_as_of_2023_blank_lines_stand_between_turns(converted):
    tag = "<img_path>train2014/COCO_train2014_1.jpg<img_path>"
    rows = [row("<image>\nq1 ", "a1", "q2", "a2", "q3", "a3")]
    assert converted(CONVERSATION, rows, job=Job(as_2023=True)) == [
        (f"{tag}q1 ", "a1"),
        (f"{tag}q1 \n\n### Assistant: a1\n\n### Human: q2", "a2"),
        (f"{tag}q1 \n\n### Assistant: a1\n\n### Human: q2\n\n### Assistant: a2\n\n### Human: q3", "a3"),
    ]


def test_a_coco_image_is_looked_for_in_both_years(converted, tmp_path):
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017/1.jpg").touch()
    rows = [row("q", "a"), row("q", "a", image="2.jpg")]
    assert [text for text, _ in converted(CONVERSATION, rows, job=Job(image_root=tmp_path))] == [
        "<img_path>train2017/1.jpg<img_path>q",
        "<img_path>train2014/COCO_train2014_2.jpg<img_path>q",
    ]


@pytest.mark.parametrize("source", [llavar.SOURCES["llavar-20k"], lamm.SOURCES["lamm"]])
def test_a_source_that_looks_at_images_asks_for_their_folder_even_where_bad_rows_are_skipped(tmp_path, source):
    with pytest.raises(ValueError, match="name their folder with --image_root"):
        source.convert(tmp_path, Job(skip_bad=True))


def test_a_bamboo_image_that_is_a_page_is_left_out(converted, tmp_path):
    (tmp_path / "2D_Instruct").mkdir()
    (tmp_path / "2D_Instruct/bamboo.jpg").write_text("<html>gone</html>")
    Image.new("RGB", (2, 2)).save(tmp_path / "2D_Instruct/bamboo.png")
    rows = [
        row("q", "page", image="bamboo.jpg"),
        row("q", "picture", image="bamboo.png"),
        row("q", "coco", image="c.jpg"),
    ]
    job = Job(image_root=tmp_path)
    records = converted(lamm.SOURCES["lamm"], rows, "LAMM_instruct_186k.json", job)
    assert [answer for _, answer in records] == ["picture", "coco"]
    assert job.left_out == {"the image is of Bamboo and does not open": 1}


def svit_rows(count):
    content = {"content": said("q", "a", sides=("user", "gpt"))}
    return [{"image_id": 7, "conversations": [content] * count}]


def test_a_single_question_has_its_image_on_either_side_as_the_seed_says(converted):
    source = svit.SOURCES["svit"]
    first, again, other = (converted(source, svit_rows(64), "svit.json", Job(seed=seed)) for seed in (1, 1, 2))
    tag = "<img_path>VG_100K_2/7.jpg<img_path>"
    assert set(first) == {(f"{tag}q", "a"), (f"q{tag}", "a")}
    assert first == again != other


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"image_id": 8, "conversations": []}, "field 'image_id' names image 8, which image_data.json does not list"),
        ({"image_id": "x", "conversations": []}, "field 'image_id' must be a whole number, not 'x'"),
        ({"image_id": 7, "conversations": [{}]}, "field 'conversations[0].content' is missing"),
        (
            {"image_id": 7, "conversations": [{"content": said("q", "a")}]},
            "field 'conversations[0].content[0].from' must be one of user, gpt, not 'human'",
        ),
    ],
)
def test_a_malformed_conversation_of_svit_is_refused_with_its_place(converted, tmp_path, bad, message):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'svit.json'}, record 1: {message}")):
        converted(svit.SOURCES["svit"], [bad], "svit.json")


def test_of_an_evolved_instruction_only_the_last_turn_is_kept(converted):
    job = Job()
    rows = [row("q1", "a1", "q2", "a2")]
    assert converted(wizardlm.SOURCES["wizardlm"], rows, "WizardLM_evol_instruct_V2_143k.json", job) == [("q2", "a2")]
    assert (job.read, job.left_out) == (1, {})


def test_messages_of_one_side_in_a_row_are_one_turn(converted):
    messages = [
        {"from": "user", "value": "q"},
        {"from": "system", "value": "s"},
        {"from": "bing", "value": "a"},
        {"from": "gpt", "value": "b"},
        {"from": "human", "value": "left alone"},
    ]
    assert converted(sharegpt.SOURCES["sharegpt"], [{"conversations": messages}], "sg_52k.json") == [("q\ns", "a\nb")]


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ([], "the dialogue holds no question with an answer"),
        (["human"], "the dialogue holds no question with an answer"),
        (["gpt"], "the answer is to a question that is not there"),
        (["gpt", "human"], "the answer is to a question that is not there"),
    ],
)
def test_a_dialogue_without_a_turn_is_counted_once(converted, order, reason):
    job = Job()
    messages = [{"from": speaker, "value": "text"} for speaker in order]
    assert converted(sharegpt.SOURCES["sharegpt"], [{"conversations": messages}], "sg_52k.json", job) == []
    assert job.left_out == {reason: 1}


def test_html_of_a_human_is_a_question_about_html(converted):
    page = "<div><p>bold?</p></div>"
    records = converted(sharegpt.SOURCES["sharegpt"], [{"conversations": said(page, page)}], "sg_52k.json")
    assert records == [(page, "bold?")]


def test_the_system_of_toolbench_is_not_read_and_what_services_return_is_a_question(converted):
    speakers = ["system", "user", "assistant", "function", "assistant"]
    values = ["<img_path> in a long text", "\nDo it.\nBegin!\n", "Thought: how?", "{}", "Done"]
    messages = [{"from": speaker, "value": value} for speaker, value in zip(speakers, values, strict=True)]
    records = converted(toolbench.SOURCES["toolbench"], [{"conversations": messages}], "toolllama_G123_dfs_train.json")
    assert records == [
        ("Do it.", "Thought: how?"),
        ("Do it.\n### Assistant: Thought: how?\n### Human: {}", "Done"),
    ]
