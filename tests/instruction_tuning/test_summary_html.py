"""The page of scores: it needs nothing from elsewhere, shows text as text, and its numbers are those of the rows."""

import re
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO

import pytest
from PIL import Image

from instruction_dataset.records import image_tag
from open_flamingo.instruction_tuning.metrics import score
from open_flamingo.instruction_tuning.summary_html import (
    BINS,
    CHARACTERS,
    ERRORS,
    EXAMPLES,
    PICTURES,
    best_and_worst,
    bins,
    render,
    write_html,
)

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The elements of a page with their attributes and all text inside; an element left open or closed twice fails."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, text):
        for element in self.open:
            element["text"] += text

    def all(self, tag, **attributes):
        found = [element for element in self.elements if element["tag"] == tag]
        return [e for e in found if all(e.get(key.rstrip("_")) == value for key, value in attributes.items())]


def row(output, target, text="Q?", **more):
    return {"input": text, "output": output, "target": target, "prompt": text, **more}


def page(metrics=None, **rows):
    metrics = metrics or {}
    return Page(render(rows, {name: score(given, metrics) for name, given in rows.items()}, metrics))


@pytest.fixture
def ladder():
    """Twelve answers with more and more words of their target."""
    words = [f"w{i}" for i in range(12)]
    return [row(" ".join(words[:i]), " ".join(words)) for i in range(12)]


def test_every_picture_is_inside_the_page_and_small(pictures, tmp_path):
    Image.new("RGB", (1000, 400), "teal").save(tmp_path / "wide.png")
    text = "".join(map(image_tag, [str(pictures / "red.png"), str(tmp_path / "wide.png")]))
    shown = page(colours=[row("red", "red", f"{text}Which colour?")]).all("img")
    assert [image["alt"] for image in shown] == ["red.png", "wide.png"]
    head = "data:image/jpeg;base64,"
    assert all(image["src"].startswith(head) for image in shown)
    images = [Image.open(BytesIO(b64decode(image["src"].removeprefix(head)))) for image in shown]
    assert max(images[1].size) == 320
    assert all(abs(a - b) < 8 for a, b in zip(images[0].getpixel((5, 5)), (255, 0, 0), strict=True))


def test_nothing_of_the_page_comes_from_elsewhere(pictures, ladder):
    text = image_tag(str(pictures / "red.png")) + "See https://example.com/a.png"
    shown = page(one=[*ladder, row("<img src=https://example.com/b.png>", "y", text), row("", "t", error="no image")])
    for element in shown.elements:
        assert element["tag"] not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        assert not any(name.startswith("on") for name in element)
        assert element.get("src", "data:").startswith("data:")
        assert element.get("href", "#").startswith("#")
    assert all(link["href"][1:] in {element.get("id") for element in shown.elements} for link in shown.all("a"))
    assert not re.search(r"url\(|@import|http", "".join(style["text"] for style in shown.all("style")))


def test_text_of_the_data_stays_text():
    evil = "<script>alert('&amp;')</script>\"><b>"
    metrics = {"<i>": lambda prediction, target: 1}
    shown = page(metrics, **{evil: [row(evil, evil, evil), row("", evil, error=evil)]})
    assert shown.all("script") == []
    assert shown.all("i") == []
    assert [item["text"] for item in shown.all("dd", class_="text answer")] == [evil]
    assert shown.all("h1")[0]["text"] == evil
    assert evil in shown.all("ol", class_="examples")[0]["text"]


def test_the_counts_of_both_histograms_add_up_to_the_answered_rows(ladder):
    given = [*ladder, row("yes", "yes"), row("", "t", error="lost")]
    shown = page(one=given)
    counts = [int(item["text"] or 0) for item in shown.all("span", class_="count")]
    assert len(counts) == BINS + 2
    assert sum(counts[:BINS]) == sum(counts[BINS:]) == len(given) - 1
    titles = [item["title"] for item in shown.all("li") if "title" in item]
    assert [int(re.search(r": (\d+) answers?$", title)[1]) for title in titles] == counts[:BINS]
    (exact,) = shown.all("ol", class_="rows")
    assert re.findall(r"[a-z]+ \d+", exact["text"]) == ["exact 1", "different 12"]


def test_each_tenth_holds_its_lower_end_and_the_last_one_also_one():
    scores = score([row("a b", f"a b{' c' * n}") for n in (0, 2, 6)] + [row("x", "y")]).rows
    assert [r.rouge_l for r in scores] == pytest.approx([1, 2 / 3, 0.4, 0])
    assert bins(scores) == [1, 0, 0, 0, 1, 0, 1, 0, 0, 1]


def test_the_best_answers_stand_in_order_and_then_the_worst_without_a_row_twice(ladder):
    ladder.insert(4, row("", "t", error="lost"))
    assert best_and_worst(score(ladder).rows) == ([12, 11, 10, 9, 8], [0, 1, 2, 3, 5])
    shown = page(one=ladder)
    values = [float(item["text"].split()[-1]) for item in shown.all("b") if item["text"].startswith("ROUGE-L")]
    assert len(values) == 2 * EXAMPLES
    assert values[:EXAMPLES] == sorted(values[:EXAMPLES], reverse=True)
    assert values[EXAMPLES:] == sorted(values[EXAMPLES:])
    assert min(values[:EXAMPLES]) > max(values[EXAMPLES:])


@pytest.mark.parametrize("size", range(EXAMPLES * 2 + 2))
def test_no_answer_is_among_the_best_and_the_worst(size):
    best, worst = best_and_worst(score([row("same", "same")] * size).rows)
    assert len({*best, *worst}) == len(best) + len(worst) == min(size, 2 * EXAMPLES)
    assert len(best) - len(worst) in {0, 1}


def test_an_example_shows_question_target_answer_and_scores(pictures):
    paths = [str(pictures / f"{color}.png") for color in ("red", "blue")]
    text = f"First {image_tag(paths[0])}, then {image_tag(paths[1])}: which colours?"
    shown = page({"half": lambda prediction, target: 0.5}, one=[row("red", "red blue", text)])
    question, target, answer = (item["text"] for item in shown.all("dd") if "tabindex" in item)
    assert question == "First picture 1, then picture 2: which colours?"
    assert (target, answer) == ("red blue", "red")
    assert shown.all("p", class_="figures")[0]["text"] == "token F1 0.667ANLS 0half 0.5"


def test_a_picture_that_cannot_be_read_is_named_instead(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    text = image_tag(str(broken)) + image_tag(str(tmp_path / "gone.png"))
    shown = page(one=[row("a", "a", f"{text}?")])
    assert shown.all("img") == []
    assert [item["aria-label"] for item in shown.all("div", role="img")] == [
        "broken.png, a picture that cannot be read",
        "gone.png, a picture that cannot be read",
    ]


def test_no_more_than_a_few_pictures_and_so_many_letters_of_an_example_are_shown(pictures):
    text = image_tag(str(pictures / "red.png")) * (PICTURES + 3)
    shown = page(one=[row("x" * (CHARACTERS + 1000), "a", text)])
    assert len(shown.all("img")) == PICTURES
    assert shown.all("p", class_="further")[0]["text"] == "and 3 more pictures"
    (answer,) = shown.all("dd", class_="text answer")
    assert answer["text"] == "x" * CHARACTERS + " … and 1,000 more characters"


def test_errors_are_listed_with_their_sentence_and_row_up_to_a_number():
    shown = page(
        one=[row("a", "a"), *(row("", "t", "<img_path>", error=f"record {i} is odd") for i in range(ERRORS + 3))]
    )
    lines = [item["text"] for item in shown.all("li") if item["text"].startswith(("row", "the first"))]
    assert lines[0] == "row 2: record 0 is odd"
    assert len(lines) == ERRORS + 1
    assert lines[-1] == f"the first {ERRORS}; 3 more rows have an error"


def test_the_head_names_the_datasets_and_gives_the_means_over_all_rows():
    shown = page(a=[row("x", "x"), row("", "t", error="lost")], b=[row("x", "y")] * 3)
    tiles = [item["text"] for item in shown.all("div") if item.get("class", "").startswith("tile ")]
    plain = [item["text"] for item in shown.all("div", class_="tile")]
    assert shown.all("h1")[0]["text"] == "a, b"
    assert tiles == ["1errors"]
    assert plain == ["5records", "25.0%exact matches", "0.250mean ROUGE-L", "0.250mean token F1", "0.250mean ANLS"]


def test_a_users_metric_is_explained_by_its_docstring():
    def polite(prediction, target):
        """Says please.

        Not shown.
        """
        return 1

    shown = page({"polite": polite}, one=[row("a", "a")])
    assert [item["text"] for item in shown.all("dd")][-1] == "Says please."


@pytest.mark.parametrize("rows", [{}, {"none": []}, {"lost": [row("", "t", "<img_path>", error="lost")]}])
def test_a_page_without_answers_is_a_page(rows):
    shown = page(**rows)
    assert shown.all("article") == []
    assert len(shown.all("tr")) == 1 + len(rows)


def test_the_file_is_replaced_whole(tmp_path):
    path, rows = tmp_path / "results" / "summary.html", {"one": [row("ä", "ä")]}
    scores = {"one": score(rows["one"])}
    for _ in range(2):
        write_html(path, rows, scores)
    assert path.read_text(encoding="utf-8") == render(rows, scores)
    assert list(path.parent.iterdir()) == [path]
