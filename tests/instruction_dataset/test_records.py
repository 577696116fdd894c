"""Records: tags written are tags read, every known format becomes the record it means, and what is wrong is refused."""

import copy
import json
import resource
import subprocess
import sys

import pytest

from instruction_dataset.formats import name_of, parse_row
from instruction_dataset.records import (
    IMAGE_TAG,
    Record,
    image_tag,
    parse_record,
    read_json_array,
    split_images,
    write_json,
    written_whole,
)

A, B = image_tag("a.jpg"), image_tag("b.jpg")


def said(*values):
    """Messages of a human and an assistant in turn, as LLaVA writes them."""
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def roles(*pairs):
    """Messages as OpenAI writes them."""
    return [{"role": role, "content": content} for role, content in pairs]


def llava(*values, **fields):
    return {"id": "1", "conversations": said(*values), **fields}


def chat(*pairs, **fields):
    return {"messages": roles(*pairs), **fields}


def picture(url):
    return {"type": "image_url", "image_url": {"url": url}}


def words(text):
    return {"type": "text", "text": text}


def test_split_images_undoes_image_tag():
    text = f"{image_tag('a/1.png')}then {image_tag('b c.jpg')}what changed?"
    assert split_images(text) == (["", "then ", "what changed?"], ["a/1.png", "b c.jpg"])


@pytest.mark.parametrize("text", ["", "no image here", "a literal <image> stays"])
def test_text_without_tags_is_left_as_it_is(text):
    assert split_images(text) == ([text], [])


def test_an_unclosed_tag_is_refused_with_an_excerpt():
    with pytest.raises(ValueError, match=r"not closed at '<img_path>b\.png What is this\?'; write <img_path>PATH"):
        split_images(f"{image_tag('a.png')}{IMAGE_TAG}b.png What is this?")


def test_a_tag_without_a_path_is_refused():
    with pytest.raises(ValueError, match="holds no path"):
        split_images(f"{IMAGE_TAG}{IMAGE_TAG}What is this?")


@pytest.mark.parametrize(("path", "message"), [("", "empty"), (" ", "empty"), (f"a{IMAGE_TAG}.png", "rename the file")])
def test_a_path_that_could_not_be_read_back_is_not_written(path, message):
    with pytest.raises(ValueError, match=message):
        image_tag(path)


@pytest.mark.parametrize(
    ("raw", "record"),
    [
        ({"input": "q", "output": "a"}, Record("q", "a")),
        ({"instruction": "Say: ", "input": "q", "output": "a"}, Record("Say: q", "a")),
        ({"instruction": "Say hi", "output": "hi", "source": 3}, Record("Say hi", "hi")),
        ({"input": "", "output": "a"}, Record("", "a")),
    ],
)
def test_a_legacy_instruction_goes_directly_before_the_input(raw, record):
    before = copy.deepcopy(raw)
    assert parse_record(raw) == record
    assert raw == before


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (["q", "a"], "must be an object with 'input' and 'output', not an array"),
        ({"output": "a"}, "'input' is missing"),
        ({"input": "q"}, "'output' is missing"),
        ({"input": None, "output": "a"}, "'input' must be a string, not null"),
        ({"input": "q", "output": 7}, "'output' must be a string, not a number"),
        ({"input": "q", "output": True}, "'output' must be a string, not true or false"),
        ({"input": "q", "output": " \n"}, "'output' is empty"),
        ({"instruction": {}, "input": "q", "output": "a"}, "'instruction' must be a string, not an object"),
    ],
)
def test_a_wrong_field_is_named(raw, message):
    with pytest.raises(ValueError, match=message):
        parse_record(raw)


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}, {"b": "é\u2028"}]',
        '\n [\n{"a": 1},\n{"b": "é\u2028"}\n]\n',
        '{"a": 1}\n{"b": "é\u2028"}',
        '\ufeff\n{"a": 1}\r\n\r\n{"b": "é\u2028"}\r\n',
    ],
    ids=["array", "array over lines", "lines", "lines with BOM, blanks and CRLF"],
)
def test_an_array_and_json_lines_read_the_same(tmp_path, text):
    path = tmp_path / "data.json"
    path.write_bytes(text.encode())
    assert read_json_array(path) == [{"a": 1}, {"b": "é\u2028"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1},\n {"a" 2}]', r"line 2, column 7: Expecting ':' delimiter, found '2}\]'"),
        (b'[{"a": 1}', r"line 1, column 10: .* found the end"),
        (b'{"a": 1}\n\n{"a": }\n', r"line 3, column 7: Expecting value, found '}'"),
        (b'{"a": 1} {"a": 2}', r"line 1, column 10: Extra data"),
        (b'"text"', r"starts with '\"text\"'; it must hold a JSON array"),
        (b" \n", "is empty"),
        (b"[\xff]", r"is not UTF-8 text \(byte 1\)"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_place(tmp_path, content, message):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json_array(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.json does not exist"):
        read_json_array(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        read_json_array(tmp_path)


def test_a_record_of_one_turn_has_one_and_a_dialogue_all_of_its_turns():
    assert Record("q", "a").turns == (("q", "a"),)
    assert Record("q", "a", (("r", "b"),)).turns == (("q", "a"), ("r", "b"))


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "new" / "data.json"
    write_json(path, [{"input": "où?", "output": "là"}])
    assert path.read_text(encoding="utf-8") == '[\n {\n  "input": "où?",\n  "output": "là"\n }\n]'
    assert read_json_array(path) == [{"input": "où?", "output": "là"}]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "data.json"
    write_json(path, ["old"])
    with pytest.raises(TypeError):
        write_json(path, ["new", object()])
    assert [file.name for file in tmp_path.iterdir()] == ["data.json"]
    assert json.loads(path.read_text()) == ["old"]


@pytest.mark.parametrize(("name", "reason"), [("folder", "Is a directory"), ("x" * 255, "File name too long")])
def test_a_file_that_cannot_be_written_is_refused_by_its_own_name_and_leaves_nothing(tmp_path, name, reason):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=f"^{tmp_path / name} cannot be written \\({reason}\\)"):
        write_json(tmp_path / name, [])
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_a_full_disk_leaves_the_old_file_and_is_told_of_by_its_name(tmp_path):
    path = tmp_path / "data.json"
    write_json(path, ["old"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"data\.json cannot be written \(File too large\)"):
            write_json(path, ["x" * 2048])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["data.json"]
    assert read_json_array(path) == ["old"]


def test_an_error_of_another_file_while_one_is_written_is_its_own(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lost\.json"), written_whole(tmp_path / "data.json"):
        (tmp_path / "lost.json").open()
    assert list(tmp_path.iterdir()) == []


def test_a_written_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").touch()
    write_json(tmp_path / "data.json", [])
    assert (tmp_path / "data.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_records_do_not_import_torch():
    code = "import sys, instruction_dataset.formats, instruction_dataset.convert; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "raw", "record"),
    [
        ("input/output", {"input": f"{A}q", "output": "a"}, Record(f"{A}q", "a")),
        ("input/output", {"instruction": "Say:", "input": f"{A}q", "output": "a"}, Record(f"Say:{A}q", "a")),
        ("input/output", {"instruction": f"{A}Say:", "input": "q", "output": "a"}, Record(f"{A}Say:q", "a")),
        ("input/output", {"instruction": None, "input": "q", "output": "a"}, Record("q", "a")),
        ("input/output", {"input": "q", "output": "a", "messages": []}, Record("q", "a")),
        ("alpaca", {"instruction": "Add.", "input": "1 2", "output": "3"}, Record("Add.\n1 2", "3")),
        ("alpaca", {"instruction": "Add. ", "input": "1 2", "output": "3"}, Record("Add. 1 2", "3")),
        ("alpaca", {"instruction": "Add.", "input": "\n1 2", "output": "3"}, Record("Add.\n1 2", "3")),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "a"}, Record("Hi", "a")),
        ("alpaca", {"instruction": "", "input": "q", "output": "a"}, Record("q", "a")),
        ("alpaca", {"instruction": "Hi", "input": None, "output": "a"}, Record("Hi", "a")),
        ("alpaca", {"instruction": "Hi", "output": "a"}, Record("Hi", "a")),
        ("conversations", llava("<image>\nq", "a", image="a.jpg"), Record(f"{A}q", "a")),
        ("conversations", llava("q\n<image>", "a", image="a.jpg"), Record(f"q{A}", "a")),
        ("conversations", llava("q <image> r", "a", image=["a.jpg"]), Record(f"q {A} r", "a")),
        ("conversations", llava("<image>\n<image>\nq", "a", image=["a.jpg", "b.jpg"]), Record(f"{A}{B}q", "a")),
        ("conversations", llava("q", "a", image="a.jpg"), Record(f"{A}q", "a")),
        (
            "conversations",
            llava("<image>\nq", "a", "<image>\nr", "b", images=["a.jpg", "b.jpg"]),
            Record(f"{A}q", "a", ((f"{B}r", "b"),)),
        ),
        ("conversations", llava("q", "a", "r", "b", image="a.jpg"), Record(f"{A}q", "a", (("r", "b"),))),
        (
            "conversations",
            llava("<image> and <|endofchunk|>", "<image>"),
            Record("<image> and <|endofchunk|>", "<image>"),
        ),
        ("conversations", llava("<image> q", "say <image>", image="a.jpg"), Record(f"{A} q", "say <image>")),
        ("conversations", llava("q", "a", "left open"), Record("q", "a")),
        ("conversations", {"conversations": said("x", "of another piece", "q", "a")[1:]}, Record("q", "a")),
        (
            "conversations",
            {"conversations": [{"from": "system", "value": "Be kind."}, *said("q", "a")], "image": "a.jpg"},
            Record(f"Be kind.\n{A}q", "a"),
        ),
        ("conversations", {"conversations": roles(("user", "q"), ("Bard", "a"))}, Record("q", "a")),
        ("messages", chat(("user", "q"), ("assistant", "a")), Record("q", "a")),
        (
            "messages",
            chat(("developer", "d"), ("system", "s"), ("user", "q"), ("assistant", "a")),
            Record("d\ns\nq", "a"),
        ),
        ("messages", chat(("system", ""), ("user", "q"), ("assistant", "a")), Record("q", "a")),
        (
            "messages",
            chat(
                ("user", "q"), ("user", "r"), ("assistant", "a"), ("assistant", "b"), ("user", "s"), ("assistant", "c")
            ),
            Record("q\nr", "a\nb", (("s", "c"),)),
        ),
        (
            "messages",
            chat(("user", [words("q "), picture("file://a.jpg"), words("r")]), ("assistant", [words("a"), words("b")])),
            Record(f"q {A}r", "a\nb"),
        ),
        (
            "messages",
            chat(("user", [{"type": "image_url", "image_url": "a.jpg"}, words("<image>")]), ("assistant", "a")),
            Record(f"{A}<image>", "a"),
        ),
        ("messages", chat(("user", [{"type": "image", "image": "a.jpg"}]), ("assistant", "a")), Record(A, "a")),
        (
            "messages",
            chat(("user", [{"type": "image"}, words("q")]), ("assistant", "a"), images=["a.jpg"], prompt="q"),
            Record(f"{A}q", "a"),
        ),
        ("question/response", {"question": "q", "response": "a", "id": 1}, Record("q", "a")),
        ("question/response", {"system_prompt": "s", "question": "q", "response": "a"}, Record("s\nq", "a")),
        ("question/response", {"system_prompt": "", "question": "q", "response": "a"}, Record("q", "a")),
        ("question/response", {"system_prompt": None, "question": "q", "response": "a"}, Record("q", "a")),
        ("prompt/completion", {"prompt": "q", "completion": "a"}, Record("q", "a")),
        ("prompt/completion", {"prompt": "q", "response": "a", "completion": None}, Record("q", "a")),
    ],
)
def test_a_row_becomes_the_record_that_it_means(name, raw, record):
    before = copy.deepcopy(raw)
    assert name_of(raw) == name
    assert parse_row(raw) == record
    assert raw == before
    assert all(split_images(question)[1] is not None for question, _ in record.turns)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (["q", "a"], "a record must be an object, not an array"),
        ({}, r"keys \[\] is of no known shape; known shapes: input/output, .*prompt/response"),
        ({"instruction": "q", "response": "a"}, r"keys \['instruction', 'response'\] is of no known shape"),
        ({str(i): "" for i in range(10**5)}, r"'11', '\.\.\.'\] is of no known shape"),
        ({"input": "q"}, "field 'output' is missing"),
        ({"output": "a"}, "field 'input' is missing"),
        ({"input": None, "output": "a"}, "'input' must be a string, not null"),
        ({"instruction": "q", "input": "i", "output": " "}, "field 'output' is empty"),
        ({"instruction": "q", "output": "a", "image": "a.jpg"}, "field 'image' is not read"),
        ({"question": "q", "response": "a", "images": ["a.jpg"]}, "field 'images' is not read"),
        ({"question": "q", "response": "\n"}, "field 'response' is empty"),
        ({"question": 3, "response": "a"}, "field 'question' must be a string, not a number"),
        ({"question": "q", "response": b"a"}, "field 'response' must be a string, not bytes"),
        ({"prompt": f"{A}q", "completion": "a"}, "field 'prompt' holds '<img_path>', which marks images"),
        ({"prompt": "q", "completion": "<img_path>"}, "field 'completion' holds '<img_path>'"),
        ({"prompt": "q", "completion": "\ud83d"}, r"the text holds '\\ud83d', half of a character"),
        ({"input": "\ude00q", "output": "a"}, r"the text holds '\\ude00', half of a character"),
        ({"conversations": {"from": ["human"]}}, "'conversations' must be an array of messages, not an object"),
        ({"conversations": []}, "holds no question with an answer"),
        ({"conversations": ["q"]}, "message 1 must be an object, not a string"),
        (llava("q"), "holds no question with an answer"),
        ({"conversations": said("x", "a")[1:]}, "holds no question with an answer"),
        (llava("q", "a", "r", " "), "the answer of turn 2 is empty"),
        (llava("q", None), "'value' of message 2 must be a string, not null"),
        (llava(f"{A}q", "a"), "'value' of message 1 holds '<img_path>'"),
        (llava("<image>q", "a", image=["a.jpg", "b.jpg"]), "has 1 places for images and the record 2 images"),
        (llava("<image><image>q", "a", image="a.jpg"), "has 2 places for images and the record 1 images"),
        (llava("q", "a", image=["<img_path>"]), "rename the file"),
        (llava("q", "a", image=" "), "an image path is empty"),
        (llava("q", "a", image={"bytes": b""}), "field 'image' must name an image file, not hold an object"),
        (llava("q", "a", image="https://a.b/c.jpg"), r"field 'image' gives an image as 'https://', not as a file"),
        (llava("q", "a", image="a.jpg", images=["a.jpg"]), "both 'image' and 'images'"),
        (
            {"conversations": [{"from": "tool", "value": "q"}]},
            "message 1 is from 'tool', which must be one of human, user",
        ),
        ({"conversations": [{"value": "q"}]}, "message 1 is from 'None'"),
        (chat(("assistant", "hi"), ("user", "q"), ("assistant", "a")), "begins with the assistant; put the question"),
        (chat(("user", "q"), ("system", "s"), ("assistant", "a")), "a system message stands after"),
        (chat(("system", "s")), "holds no question with an answer"),
        (
            chat(("user", [picture("data:image/png;base64,AA")]), ("assistant", "a")),
            "part 1 of message 1 gives .* 'data:'",
        ),
        (chat(("user", [picture("HTTP://a/b.png")]), ("assistant", "a")), "'HTTP://', not as a file"),
        (chat(("user", [picture(None)]), ("assistant", "a")), "must name an image file, not hold null"),
        (chat(("user", "q"), ("assistant", [picture("a.jpg")])), "message 2 gives an image to the assistant"),
        (chat(("user", [{"type": "image"}]), ("assistant", "a")), "has 1 places for images and the record 0 images"),
        (
            chat(("user", [picture("a.jpg")]), ("assistant", "a"), images=["b.jpg"]),
            "0 places for images and the record 1",
        ),
        (chat(("user", [{"type": "input_audio"}]), ("assistant", "a")), "part 1 of message 1 must be an object with"),
        (chat(("user", ["q"]), ("assistant", "a")), "part 1 of message 1 must be an object with"),
        (chat(("user", [words("<img_path>")]), ("assistant", "a")), "part 1 of message 1 holds '<img_path>'"),
    ],
)
def test_what_cannot_be_kept_whole_is_refused_with_a_sentence(raw, message):
    with pytest.raises(ValueError, match=message) as refusal:
        parse_row(raw)
    assert type(refusal.value) is ValueError
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_texts_side_by_side_do_not_forge_an_image_tag():
    raw = chat(("user", [words("<img_"), words("path>x<img_"), words("path>")]), ("assistant", "a"))
    assert split_images(parse_row(raw).input)[1] == []
    raw = llava("<img_<image>path>x<img_", "a", image="a.jpg")
    assert split_images(parse_row(raw).input) == (["<img_", "path>x<img_"], ["a.jpg"])
