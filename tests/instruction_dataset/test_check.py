"""The check of instruction data: every kind of problem with its place, its exit codes, and a page that is safe to open."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from instruction_dataset.check import decoded, main, written
from instruction_dataset.dialogue import expand
from instruction_dataset.findings import SHOWN, Findings, Kind
from instruction_dataset.records import Record, image_tag, parse_record
from instruction_dataset.scan import Seen
from open_flamingo.instruction_tuning.data.conversation import Conversation, TurnTokenizer
from open_flamingo.src.factory import MEDIA_TOKEN, add_special_tokens

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "instruction_dataset.check"]
HOSTILE_NAME = """it's "quoted" <b>.png"""
HOSTILE_TEXT = "<script>alert('seen')</script> & what is it?"
CHROMIUM = shutil.which("chromium")


def question(*paths, text="What is it?", output="A picture."):
    return {"input": "".join(map(image_tag, paths)) + text, "output": output}


def write_images(folder):
    folder.mkdir()
    noise = np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8)
    for name in ("good.png", "good.jpg", HOSTILE_NAME):
        Image.fromarray(noise).save(folder / name)
    (folder / "text.png").write_text("no image")
    (folder / "cut.jpg").write_bytes((folder / "good.jpg").read_bytes()[:3000])
    Image.new("1", (10_001, 2)).save(folder / "wide.png")
    Image.new("1", (13_500, 13_500)).save(folder / "bomb.png")
    return folder


BROKEN = {
    1: (Kind.MALFORMED, 5),
    2: (Kind.MALFORMED, {"input": 3, "output": "x"}),
    3: (Kind.EMPTY_OUTPUT, {"input": "What?", "output": " "}),
    4: (Kind.EMPTY_OUTPUT, {"question": "What?", "response": ""}),
    5: (Kind.IMAGE_TAGS, {"input": "<img_path>good.png What?", "output": "x"}),
    6: (
        Kind.IMAGE_COUNT,
        {
            "images": ["good.png"],
            "messages": [
                {"role": "user", "content": "<image><image>What?"},
                {"role": "assistant", "content": "x"},
            ],
        },
    ),
    7: (Kind.MISSING, question("lost.png")),
    8: (Kind.UNREADABLE, question("text.png")),
    9: (Kind.DAMAGED, question("cut.jpg")),
    10: (Kind.TOO_HUGE, question("bomb.png")),
    11: (Kind.TOO_LONG, {"input": "long " * 200, "output": "x"}),
    12: (Kind.TOO_MANY_IMAGES, question(*["good.png"] * 6)),
    13: (Kind.CUT, {"input": "Go on.", "output": "long " * 200}),
    14: (Kind.HUGE, question("wide.png")),
    15: (None, question("good.png")),
    16: (Kind.DUPLICATE, question("good.png")),
    17: (Kind.SPECIAL, {"input": "What is <image>?", "output": "x"}),
    18: (Kind.SPECIAL, {"input": "Once?", "output": "x\n### Human: Twice?"}),
    19: (Kind.SPECIAL, {"input": "What ends a text?", "output": "<|endoftext|> does."}),
    20: (Kind.MISSING, question("x" * 300 + ".png")),
}
"""Record number -> what is wrong with it, and the record."""
BROKEN[20] = (Kind.UNREADABLE, BROKEN[20][1])  # a name too long for the file system


def write_config(folder, **datasets):
    """A config of datasets in `folder`, each of (ratio, records), with images of all sorts."""
    images = write_images(folder / "images")
    entries = []
    for name, (ratio, records) in datasets.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(records))
        entries.append({"dataset_name": name, "json_path": str(path), "img_dir": str(images), "ratio": ratio})
    (folder / "mix.json").write_text(json.dumps(entries))
    return folder / "mix.json"


@pytest.fixture
def broken(tmp_path):
    good = [question("good.png"), question("good.jpg", "good.png")]
    return write_config(tmp_path, broken=(3, [record for _, record in BROKEN.values()]), good=(1, good))


@pytest.fixture
def clean(tmp_path):
    records = [question("good.png"), question(HOSTILE_NAME, text=HOSTILE_TEXT, output="A <b>noise</b>."), *DIALOGUE]
    return write_config(tmp_path, clean=(1, records), other=(2, [{"input": "What is the sun?", "output": "A star."}]))


DIALOGUE = [
    {
        "conversations": [
            {"from": "human", "value": "Who are you?"},
            {"from": "gpt", "value": "A model."},
            {"from": "human", "value": "And I?"},
            {"from": "gpt", "value": "A human."},
        ]
    }
]


def examples(output):
    """Kind's title -> how many there are, and the lines below, out of what the command printed."""
    found, last = {}, None
    for line in output.splitlines():
        word, _, rest = line.strip().partition("  ")
        if word in ("error", "warning"):
            title, count = rest.strip().rsplit("  ", 1)
            last = found.setdefault(title.strip(), (int(count.replace(",", "")), []))
        elif line.startswith(" " * 11) and last:
            last[1].append(line.strip())
    return found


def turn_tokenizer(folder, template="guanaco"):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    add_special_tokens(tokenizer)
    return TurnTokenizer(tokenizer, tokenizer.convert_tokens_to_ids(MEDIA_TOKEN), template)


class Page(HTMLParser):
    """Elements of a page, and the texts of its samples and of what is marked in them."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.samples, self.marks, self.inside, self.depth = [], [], [], None, 0
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "div" and dict(attrs).get("class") == "text":
            self.samples.append("")
            self.marks.append([])
            self.inside = True
        self.depth += tag == "mark"
        if tag == "mark" and self.inside:
            self.marks[-1].append("")

    def handle_endtag(self, tag):
        self.depth -= tag == "mark"
        if tag == "div":
            self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.samples[-1] += data
            if self.depth:
                self.marks[-1][-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_every_kind_of_problem_is_found_with_its_file_and_record_in_one_run(broken, tiny_lm, capsys):
    assert main([str(broken), "--tokenizer", str(tiny_lm), "--workers", "2"]) == 1
    found = examples(capsys.readouterr().out)
    expected = {}
    for number, (kind, _) in BROKEN.items():
        if kind:
            expected.setdefault(kind.title, []).append(f"{broken.parent / 'broken.json'}, record {number}: ")
    assert found.keys() == expected.keys()
    for title, places in expected.items():
        count, messages = found[title]
        assert count == len(places) == len(messages)
        for place, message in zip(places, messages, strict=True):
            assert message.startswith(place)
    assert "the same as record 15;" in found[Kind.DUPLICATE.title][1][0]


def test_a_clean_corpus_ends_with_0_and_says_so(clean, capsys):
    assert main([str(clean), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert examples(out) == {}
    assert "ready to train: 0 errors, 0 warnings" in out
    assert "--max_length is not known; give --tokenizer" in out


def test_turns_before_an_instruction_are_part_of_it(tmp_path, capsys):
    rows = [(record.input, record.output) for record in expand([("Who?", "A cat."), ("Sure?", "Yes.")])]
    (tmp_path / "data.json").write_text(json.dumps([{"input": text, "output": said} for text, said in rows]))
    assert main([str(tmp_path / "data.json"), "--workers", "1"]) == 0
    assert examples(capsys.readouterr().out) == {}


def test_warnings_alone_end_with_0(tmp_path, capsys):
    config = write_config(tmp_path, twice=(1, [question("good.png")] * 2))
    assert main([str(config), "--workers", "1"]) == 0
    assert examples(capsys.readouterr().out)[Kind.DUPLICATE.title][0] == 1


def test_all_problems_are_counted_and_the_first_twenty_of_each_kind_shown(tmp_path, capsys):
    (tmp_path / "data.json").write_text(json.dumps([{"input": "What?", "output": ""}] * 33))
    assert main([str(tmp_path / "data.json"), "--workers", "1"]) == 1
    count, messages = examples(capsys.readouterr().out)[Kind.EMPTY_OUTPUT.title]
    assert count == 33
    assert len(messages) == SHOWN + 1
    assert messages[-1] == "... and 13 more"


def test_shards_are_one_dataset_whose_duplicates_are_found_across_files(tmp_path, capsys):
    (tmp_path / "shards").mkdir()
    for shard in "ab":
        (tmp_path / "shards" / f"{shard}.jsonl").write_text(json.dumps({"input": "What?", "output": "x"}) + "\n")
    assert main([str(tmp_path / "shards"), "--workers", "1"]) == 0
    (message,) = examples(capsys.readouterr().out)[Kind.DUPLICATE.title][1]
    assert message.startswith(f"{tmp_path / 'shards' / 'b.jsonl'}, record 1: the same as record 1 of ")
    assert "a.jsonl" in message


def test_a_file_that_breaks_off_is_an_error_and_what_comes_before_is_checked(tmp_path, capsys):
    (tmp_path / "data.json").write_text('[{"input": "What?", "output": ""}, {"input": ')
    assert main([str(tmp_path / "data.json"), "--workers", "1"]) == 1
    found = examples(capsys.readouterr().out)
    assert found.keys() == {Kind.FILE.title, Kind.EMPTY_OUTPUT.title, Kind.NO_RECORDS.title}


def test_each_broken_entry_of_a_config_is_named_and_the_others_are_checked(clean, capsys):
    entries = json.loads(clean.read_text())
    wrong = [{"json_path": "x"}, {**entries[0], "ratio": -1}, {**entries[0]}, {**entries[1], "dataset_name": "third"}]
    wrong[-1]["json_path"] = str(clean.parent / "nowhere.json")
    clean.write_text(json.dumps([*entries, *wrong]))
    assert main([str(clean), "--workers", "1"]) == 1
    found = examples(capsys.readouterr().out)
    assert [message.partition(": ")[0] for message in found[Kind.CONFIG.title][1]] == [
        f"{clean}, dataset {number}" for number in (3, 4, 5)
    ]
    assert "nowhere.json does not exist" in found[Kind.FILE.title][1][0]


def test_without_a_record_that_fits_training_would_fail(clean, tiny_lm, capsys):
    flags = ["--tokenizer", str(tiny_lm), "--max_length", "3", "--workers", "1"]
    assert main([str(clean), *flags]) == 1
    assert Kind.NO_RECORDS.title in examples(capsys.readouterr().out)


def test_an_image_of_many_records_is_decoded_once(tmp_path, capsys):
    config = write_config(tmp_path, many=(1, [question("lost.png", text=str(i)) for i in range(50)]))
    assert main([str(config), "--workers", "1"]) == 1
    count, messages = examples(capsys.readouterr().out)[Kind.MISSING.title]
    assert count == 1
    assert "record 1:" in messages[0]


def test_the_command_prints_to_stdout_and_ends_with_its_code(broken):
    ended = subprocess.run([*COMMAND, broken, "--workers", "1"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "training would fail" in ended.stdout
    assert "Traceback" not in ended.stderr
    missing = subprocess.run([*COMMAND, "nowhere.json"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (missing.returncode, missing.stderr) == (1, "error: nowhere.json does not exist; check the path\n")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc, to know when the workers run")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_ends_at_once_and_leaves_no_page_and_no_process(tmp_path, number, code):
    images = tmp_path / "images"
    images.mkdir()
    Image.effect_noise((4000, 4000), 100).save(images / "0.png")
    for i in range(1, 200):
        os.link(images / "0.png", images / f"{i}.png")
    records = [question(f"{images / str(i)}.png") for i in range(200)]
    (tmp_path / "data.json").write_text(json.dumps(records))
    flags = [tmp_path / "data.json", "--html", tmp_path / "out" / "report.html", "--workers", "2"]
    process = subprocess.Popen([*COMMAND, *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(workers := children(process.pid)) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    assert process.poll() is None
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: the workers get it too
    else:
        process.terminate()
    start = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 5
    assert process.returncode == code
    assert errors.endswith("interrupted\n") == (number == signal.SIGINT)
    assert "Traceback" not in errors
    assert list((tmp_path / "out").iterdir()) == []
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


def children(pid):
    """The processes that a process has started."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    return file.read_text().split() if file.exists() else []


def test_a_page_that_cannot_be_written_is_refused_before_the_work(clean, tmp_path):
    with pytest.raises(ValueError, match="cannot be written; name a file"):
        main([str(clean), "--html", str(tmp_path)])


def test_the_page_holds_problems_charts_and_samples_and_refers_to_nothing_outside(broken, tiny_lm, tmp_path):
    page = tmp_path / "pages" / "report.html"
    assert main([str(broken), "--html", str(page), "--tokenizer", str(tiny_lm), "--workers", "2"]) == 1
    seen = Page(page)
    assert all(escape(kind.title) in seen.source for kind, _ in BROKEN.values() if kind)
    assert [attrs["class"] for attrs in seen.all("svg")] == ["ring", "ring", "histogram", "histogram", "histogram"]
    assert "by ratio: 75.0%" not in seen.source
    assert "broken: 75.0%" in seen.source  # its share by ratio
    assert len(seen.samples) == len([kind for kind, _ in BROKEN.values() if kind not in MALFORMED]) + 2
    links = [attrs.get(name) for _, attrs in seen.tags for name in ("src", "href") if name in attrs]
    assert links
    assert all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert not seen.all("script")
    assert not seen.all("link")
    assert "http:" not in seen.source
    assert "https:" not in seen.source
    assert "url(" not in seen.source
    assert list(page.parent.iterdir()) == [page]


MALFORMED = (Kind.MALFORMED, Kind.EMPTY_OUTPUT, Kind.IMAGE_TAGS, Kind.IMAGE_COUNT)


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_hostile_text_and_paths_are_shown_and_never_become_markup(clean, tiny_lm, tmp_path, with_tokenizer):
    page = tmp_path / "report.html"
    flags = ["--tokenizer", str(tiny_lm)] if with_tokenizer else []
    assert main([str(clean), "--html", str(page), "--workers", "1", *flags]) == 0
    seen = Page(page)
    assert not seen.all("script")
    assert any(HOSTILE_TEXT in sample for sample in seen.samples)
    assert any(mark.startswith("A <b>noise</b>.") for marks in seen.marks for mark in marks)
    assert str(clean.parent / "images" / HOSTILE_NAME) in [attrs["alt"] for attrs in seen.all("img")]
    allowed = {"src", "alt", "title"}
    assert all(attrs.keys() == allowed for attrs in seen.all("img"))


@pytest.mark.parametrize("template", ["guanaco", "guanaco-no-prompt"])
def test_what_is_marked_is_what_is_supervised(clean, tiny_lm, tmp_path, template):
    page = tmp_path / "report.html"
    flags = ["--tokenizer", str(tiny_lm), "--instruction_prompt_template", template, "--max_length", "300"]
    assert main([str(clean), "--html", str(page), "--workers", "1", *flags]) == 0
    turns = turn_tokenizer(tiny_lm, template)
    expected = []
    for record in (
        Record("Who are you?", "A model.", (("And I?", "A human."),)),
        Record("What is the sun?", "A star."),
    ):
        conversation = Conversation()
        conversation.extend(turns.turns(record, first=True))
        expected.append((turns.tokenizer.decode(conversation.ids), supervised_texts(turns, conversation)))
    seen = Page(page)
    assert all(pair in zip(seen.samples, seen.marks, strict=True) for pair in expected)
    assert expected[0][1] == ["A model.<|endoftext|>", "A human.<|endoftext|>"]


def supervised_texts(turns, conversation):
    """The decoded texts of each run of supervised tokens."""
    runs, before = [], False
    for i, wanted in zip(conversation.ids, conversation.supervised, strict=True):
        if wanted and not before:
            runs.append([])
        if wanted:
            runs[-1].append(i)
        before = wanted
    return [turns.tokenizer.decode(ids) for ids in runs]


def test_a_cut_sample_shows_no_more_than_training_sees(tiny_lm):
    turns = turn_tokenizer(tiny_lm, "guanaco-no-prompt")
    conversation = Conversation()
    record = parse_record(question("a.png", "b.png", output="long " * 100))
    conversation.extend(turns.turns(record, first=True))
    conversation.cut(90, turns.media_token_id)
    segments = decoded(conversation, turns.tokenizer)
    assert "".join(segment.text for segment in segments) == turns.tokenizer.decode(conversation.ids)
    assert [segment.text for segment in segments if segment.special] == [MEDIA_TOKEN] * 2
    supervised = [i for i, wanted in zip(conversation.ids, conversation.supervised, strict=True) if wanted]
    assert "".join(s.text for s in segments if s.supervised) == turns.tokenizer.decode(supervised)


def test_without_a_tokenizer_the_text_is_that_of_the_template(tiny_lm):
    turns = turn_tokenizer(tiny_lm)
    record = Record(image_tag("a.png") + "Who?", "I.", ((f"And {image_tag('b.png')}?", "You."),))
    conversation = Conversation()
    conversation.extend(turns.turns(record, first=True))
    expected = turns.tokenizer.decode(conversation.ids).replace("<|endoftext|>", "")
    assert "".join(segment.text for segment in written(record, "guanaco")) == expected


def test_the_same_seed_draws_the_same_samples_and_every_dataset_gives_some(tmp_path):
    many = [{"input": f"Which number is {i}?", "output": str(i)} for i in range(500)]
    config = write_config(tmp_path, many=(1, many), few=(1, [question("good.png")]))
    pages = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        page = tmp_path / f"{name}.html"
        main([str(config), "--html", str(page), "--samples", "5", "--seed", seed, "--workers", "1"])
        pages.append(Page(page).samples)
    assert pages[0] == pages[1] != pages[2]
    assert len(pages[0]) == 5
    assert any("What is it?" in sample for sample in pages[0])


def test_control_characters_of_a_message_are_spelled_out():
    findings = Findings()
    findings.add(Kind.MISSING, "a\x1b[31m\ud800\n é 象")
    assert list(findings) == [(Kind.MISSING, 1, ["a\\x1b[31m\\ud800\\n é 象"])]


def test_which_keys_came_before_is_remembered_through_growth():
    seen = Seen()
    keys = [str(i % 3000) for i in range(6000)]
    assert [seen.first(key, number) for number, key in enumerate(keys)] == [i % 3000 for i in range(6000)]
    assert len(seen) == 3000


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_renders_the_page(broken, tiny_lm, tmp_path, width):
    page = tmp_path / "report.html"
    main([str(broken), "--html", str(page), "--tokenizer", str(tiny_lm), "--workers", "1"])
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={profile}"]
        flags += [f"--screenshot={tmp_path / 'page.png'}", f"--window-size={width},900"]
        subprocess.run([CHROMIUM, *flags, page.as_uri()], check=True, capture_output=True, timeout=120)
    with Image.open(tmp_path / "page.png") as shot:
        assert shot.width == width
        assert len(shot.convert("RGB").getcolors(1 << 24)) > 20
