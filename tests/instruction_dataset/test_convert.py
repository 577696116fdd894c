"""Converting as a command: every source gives what its fixture says, and no run leaves half a file."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
from fixture_sources import FIXTURES, NAMES, convert_fixture, listed, write_images

from instruction_dataset import convert, sources
from instruction_dataset.catalogue import find_sources

LLAVA = "llava-detail-23k"


def dialogue(number, *texts):
    """A record of LLaVA about one image."""
    said = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": str(number), "image": f"{number}.jpg", "conversations": said}


def image(number):
    return f"train2014/COCO_train2014_{number}.jpg"


@pytest.fixture
def llava(tmp_path):
    """Writes a source of LLaVA, converts it with flags, and gives the exit code."""

    def run(rows, *flags, output="out.json"):
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / "source" / "detail_23k.json").write_text(json.dumps(rows))
        files = ["--source", str(tmp_path / "source"), "--output", str(tmp_path / output)]
        return convert.main([LLAVA, *files, *map(str, flags)])

    return run


def answers(path):
    return [record["output"] for record in json.loads(path.read_text())]


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize("name", NAMES)
def test_a_fixture_becomes_exactly_the_records_expected(name, tmp_path):
    written = json.loads(convert_fixture(name, tmp_path).read_text(encoding="utf-8"))
    expected = (FIXTURES / name / "expected.json").read_text(encoding="utf-8")
    assert json.dumps(written, indent=1, ensure_ascii=False) == expected.strip()


@pytest.mark.parametrize("name", [name for name in NAMES if listed(name, "made")])
def test_the_images_that_a_source_makes_are_those_expected(name, tmp_path):
    convert_fixture(name, tmp_path)
    made = [path.relative_to(tmp_path / "made") for path in (tmp_path / "made").rglob("*") if path.is_file()]
    assert sorted(map(str, made)) == sorted(listed(name, "made"))


def test_every_source_has_a_fixture_and_every_fixture_a_source():
    assert list(find_sources()) == NAMES


def test_the_file_is_an_array_with_one_record_a_line(llava, tmp_path):
    assert llava([dialogue(1, "<image>\nWhat?", "Où? 🐈"), dialogue(2, "Who?", 'A "man"\nand\tmore')]) == 0
    assert (tmp_path / "out.json").read_text(encoding="utf-8") == (
        "[\n"
        f'{{"input": "<img_path>{image(1)}<img_path>What?", "output": "Où? 🐈"}},\n'
        f'{{"input": "<img_path>{image(2)}<img_path>Who?", "output": "A \\"man\\"\\nand\\tmore"}}\n'
        "]\n"
    )


def test_a_name_that_ends_in_jsonl_gives_json_lines(llava, tmp_path):
    rows = [dialogue(1, "What?", "A cat."), dialogue(2, "Who?", "A man.")]
    assert llava(rows) == 0
    assert llava(rows, output="out.jsonl") == 0
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads((tmp_path / "out.json").read_text())


def test_the_turns_of_a_dialogue_are_quoted_like_any_other_text(llava, tmp_path):
    said = ["\x00 \u2028 é", 'a\\"\x7f', "🐈\ud83d\ude00", "b\r\n\x1f"]
    assert llava([dialogue(1, *said), dialogue(1, said[0], "again"), dialogue(1, said[0] + said[0], "longer")]) == 0
    history = f"{said[0]}\n### Assistant: {said[1]}\n### Human: "
    assert [
        record["input"].rpartition("<img_path>")[2] for record in json.loads((tmp_path / "out.json").read_text())
    ] == [
        said[0],
        history + "🐈😀",
        said[0],
        said[0] + said[0],
    ]


def test_the_summary_counts_what_was_read_written_and_left_out(llava, capsys):
    assert (
        llava([dialogue(1, "What?", "A cat.", "Sure?", "Yes."), dialogue(2, "Who?", " "), dialogue(3, "A?", "B")]) == 0
    )
    printed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:]]
    assert printed[:2] == [["read", "3"], ["written", "3"]]
    assert [*map(" ".join, printed[2:])] == ["images 3  named in them", "left out             1  the answer is empty"]


def test_a_malformed_row_is_one_line_with_file_record_and_field_and_the_old_file_stays(llava, tmp_path, capsys):
    (tmp_path / "out.json").write_text("old")
    assert llava([dialogue(1, "What?", "A cat."), dialogue(2, "What?", 7)]) == 1
    source = tmp_path / "source" / "detail_23k.json"
    assert (
        capsys.readouterr().err
        == f"error: {source}, record 2: field 'conversations[1].value' must be a string, not a number\n"
    )
    assert (files(tmp_path), (tmp_path / "out.json").read_text()) == (["out.json"], "old")


def test_skip_bad_leaves_malformed_rows_out_counts_them_and_shows_the_first_five(llava, tmp_path, capsys):
    bad = [{"image": "1.jpg"}, dialogue(1, "What?"), dialogue(1, "a", "<img_path>"), 7, dialogue(2, "a", "\ud800")]
    assert llava([*bad, *bad[:2], dialogue(1, "What?", "A cat.")], "--skip_bad") == 0
    assert answers(tmp_path / "out.json") == ["A cat."]
    printed = capsys.readouterr().out
    assert re.search(r"malformed +7  skipped:\n", printed)
    shown = [
        line.strip().removeprefix(str(tmp_path / "source" / "detail_23k.json")) for line in printed.splitlines()[-5:]
    ]
    assert [line.partition(":")[0] for line in shown] == [f", record {number}" for number in range(1, 6)]
    assert "field 'conversations' is missing" in shown[0]


def test_a_row_is_counted_once_whatever_becomes_of_it(llava, tmp_path, capsys):
    rows = [dialogue(1, "a", "", "b", "\ud800"), dialogue(2), dialogue(3, "a", "A cat.")]
    assert llava(rows, "--skip_bad") == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^  (read|written|left out|malformed) +(\d+)", printed, re.MULTILINE) == [
        ("read", "3"),
        ("written", "1"),
        ("malformed", "2"),
    ]


def test_a_row_that_holds_nothing_is_counted(tmp_path, capsys):
    captions = [{"filename": "1.jpg", "split": "train", "sentences": []}]
    captions += [{"filename": "2.jpg", "split": "train", "sentences": [{"raw": "a cat"}]}]
    (tmp_path / "dataset_rsicd.json").write_text(json.dumps({"images": captions}))
    assert convert.main(["rsicd", "--source", str(tmp_path), "--output", str(tmp_path / "out.json")]) == 0
    assert re.search(r"left out +1  the row holds nothing to make a record of\n", capsys.readouterr().out)


def test_an_answer_that_names_an_image_is_malformed(tmp_path, capsys):
    row = {"image_id": "1", "question": "What?", "answer": "A <img_path>z.jpg<img_path> cat."}
    (tmp_path / "filter_cap.json").write_text(json.dumps([row]))
    (tmp_path / "image_data.json").write_text('[{"image_id": 1, "url": "https://a/VG_100K/1.jpg"}]')
    assert convert.main(["lrv", "--source", str(tmp_path), "--output", str(tmp_path / "out.json")]) == 1
    assert "its text holds '<img_path>', which names images" in capsys.readouterr().err


def test_a_name_that_no_file_can_have_is_that_of_a_missing_image(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    row = dialogue(1, "What?", "A cat.") | {"image": "x" * 300}
    (tmp_path / "llava_instruct_150k_llavar_20k.json").write_text(json.dumps([row]))
    files = ["--source", str(tmp_path), "--output", str(tmp_path / "out.json")]
    assert convert.main(["llavar-20k", *files, "--image_root", str(tmp_path / "images")]) == 1
    assert "the image is not there, as those of LLaVA's dialogues: 1" in capsys.readouterr().err


def test_a_run_never_replaces_a_file_of_its_source(tmp_path, capsys):
    source = tmp_path / "detail_23k.json"
    source.write_text(json.dumps([dialogue(1, "What?", "A cat.")]))
    before = source.read_text()
    for named in (tmp_path, source):
        with pytest.raises(SystemExit) as caught:
            convert.main([LLAVA, "--source", str(named), "--output", str(source)])
        assert caught.value.code == 2
        assert "is there, among the files of --source; remove it, or name one elsewhere" in capsys.readouterr().err
    assert source.read_text() == before


def test_limit_stops_after_so_many_records(llava, tmp_path):
    assert llava([dialogue(1, "a", "1", "b", "2", "c", "3"), {"malformed": True}], "--limit", 2) == 0
    assert answers(tmp_path / "out.json") == ["1", "2"]


def test_check_images_leaves_out_what_training_cannot_open_by_kind_and_in_order(llava, tmp_path, capsys):
    images = write_images(tmp_path / "images", [image(number) for number in range(6)])
    (images / image(1)).unlink()
    (images / image(2)).write_bytes((images / image(2)).read_bytes()[:-200])
    (images / image(4)).write_text("no image")
    rows = [dialogue(number, "a", f"{number}", "b", f"{number}b") for number in (0, 1, 2, 3, 4, 5, 1, 0)]
    flags = ["--check_images", "--image_root", images]
    assert llava(rows, *flags) == 0
    assert answers(tmp_path / "out.json") == ["0", "0b", "3", "3b", "5", "5b", "0", "0b"]
    counts = re.findall(r"left out +(\d+)  (.*)", capsys.readouterr().out)
    assert counts == [("4", "missing image"), ("2", "truncated or damaged image"), ("2", "unreadable image")]
    assert llava([*rows, {"malformed": True}], *flags, "--limit", 8) == 0
    assert answers(tmp_path / "out.json") == ["0", "0b", "3", "3b", "5", "5b", "0", "0b"]


def test_a_source_of_which_nothing_is_left_is_an_error_that_says_why(llava, tmp_path, capsys):
    assert llava([dialogue(1, "a", ""), dialogue(2, "a", "")]) == 1
    reason = "2 rows read, the answer is empty: 2"
    assert capsys.readouterr().err == f"error: {tmp_path / 'source'} gives no record ({reason}); check --source\n"
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "code", "words"), [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "")]
)
def test_a_stopped_run_leaves_the_old_file_alone_and_no_other(tmp_path, number, code, words):
    row = json.dumps(dialogue(1, "What is it?", "A cat."))
    source = tmp_path / "detail_23k.json"
    source.write_text("[" + ",".join([row] * 200_000) + "]")
    output = tmp_path / "converted" / "out.json"
    output.parent.mkdir()
    output.write_text("old")
    command = ["-m", "instruction_dataset.convert", LLAVA, "--source", source, "--output", output]
    with subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(files(output.parent)) < 2:
            time.sleep(0.001)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (code, words)
    assert (files(output.parent), output.read_text()) == (["out.json"], "old")


def test_an_output_that_cannot_be_written_is_one_line(llava, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert llava([dialogue(1, "a", "b")], output="file/out.json") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'file'} cannot be read or written: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name a source, or see them all with --list"),
        (["lava-detail-23k"], "there is no source 'lava-detail-23k'; did you mean llava-detail-23k"),
        (["LLaVA_detail_23k"], "did you mean llava-detail-23k"),
        (["vqa"], "did you mean vqav2"),
        (["qqqqqq"], "there is no source 'qqqqqq'; --list names them all"),
        ([LLAVA], "--source is missing; llava-detail-23k is made of detail_23k.json, from Hugging Face"),
        ([LLAVA, "--source", "."], "--output is missing"),
        ([LLAVA, "--source", ".", "--output", "o", "--split", "val"], "it has none, leave --split out"),
        (["coco-captions", "--source", ".", "--output", "o", "--split", "all"], "choose one of train, val"),
        ([LLAVA, "--source", ".", "--output", "o", "--check_images"], "name their folder with --image_root"),
        ([LLAVA, "--source", ".", "--output", "o", "--image_root", "nowhere"], "--image_root nowhere is no folder"),
        ([LLAVA, "--source", ".", "--output", "."], "--output . is a folder; name a file"),
        (["gqa", "--source", ".", "--output", "o", "--as_2023"], "gqa has no output of 2023 to give"),
        ([LLAVA, "--source", ".", "--output", "o", "--limit", "0"], "expected a whole number of at least 1, not '0'"),
    ],
)
def test_wrong_flags_end_with_2_and_say_what_to_do(flags, message, capsys):
    with pytest.raises(SystemExit) as caught:
        convert.main(flags)
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_split_is_the_first_one_unless_it_is_named(tmp_path):
    records = {}
    for split in ([], ["--split", "train"], ["--split", "val"]):
        output = tmp_path / f"{len(records)}.json"
        source = tmp_path / "source"
        source.mkdir(exist_ok=True)
        for name in ("train", "val"):
            held = {"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": f"a {name}"}]}
            (source / f"captions_{name}2017.json").write_text(json.dumps(held))
        assert convert.main(["coco-captions", "--source", str(source), "--output", str(output), *split]) == 0
        records["".join(split)] = answers(output)
    assert records == {"": ["A train."], "--splittrain": ["A train."], "--splitval": ["A val."]}


def test_list_prints_every_source_on_a_line_of_its_own(capsys):
    assert convert.main(["--list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "name"
    assert [line.split()[0] for line in lines] == list(find_sources())
    assert "complex_reasoning_77k.json" in next(line for line in lines if line.startswith("llava-complex"))


def test_list_with_a_name_prints_all_that_is_known_of_it(capsys):
    assert convert.main(["--list", "coco-captions"]) == 0
    printed = capsys.readouterr().out
    source = find_sources()["coco-captions"]
    assert all(fact in printed for fact in (source.files, source.origin, source.licence, source.images))
    assert f"  splits    {', '.join(source.splits)}\n" in printed


@pytest.fixture
def folder_of_sources(tmp_path, monkeypatch):
    """A folder that counts as one of sources for the length of a test."""
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(f"{sources.__name__}.{path.stem}", None)


def test_adding_a_dataset_is_adding_the_file_that_the_documentation_shows(folder_of_sources):
    page = (FIXTURES.parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    (folder_of_sources / "weather.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    (folder_of_sources / "weather.jsonl").write_text('{"photo": "1.jpg", "sky": "Cloudy."}\n')
    output = folder_of_sources / "out.json"
    assert convert.main(["weather", "--source", str(folder_of_sources), "--output", str(output)]) == 0
    (record,) = json.loads(output.read_text())
    assert record == {"input": "<img_path>1.jpg<img_path>What is the weather like?", "output": "Cloudy."}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"sources\.added has no SOURCES; give it one, or begin its name with '_'"),
        ("from instruction_dataset.sources.llava import SOURCES", "both name a source 'llava-complex-reasoning-77k'"),
    ],
)
def test_a_file_of_sources_without_any_and_one_with_a_name_that_is_taken_are_refused(text, message, folder_of_sources):
    (folder_of_sources / "added.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_sources()


def test_the_table_of_the_documentation_is_the_one_that_the_code_makes(capsys):
    assert convert.main(["--list", "--markdown"]) == 0
    page = (FIXTURES.parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out in page
