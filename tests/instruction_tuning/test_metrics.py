"""Scores of predictions against targets, the table that shows them, and metrics of the user's own."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_flamingo.instruction_tuning.metrics import (
    anls,
    levenshtein,
    load_metrics,
    markdown_table,
    score,
    summarize,
    token_f1,
)

FAILED = {"input": "Q", "output": "", "target": "a", "prompt": "", "error": "image cat.png does not exist"}


def rows(*pairs):
    return [{"input": "Q", "output": output, "target": target, "prompt": "P"} for output, target in pairs]


def plain_levenshtein(a, b):
    """The whole table of distances, row by row."""
    above = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        row = [i]
        for j, y in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
        above = row
    return above[-1]


def test_equal_texts_score_one_and_are_counted_as_exact_but_for_space_around_them():
    scores = score(rows(("A cat. ", "A cat."), ("Two dogs.", "Two dogs.")))
    assert (scores.rouge_l, scores.token_f1, scores.anls) == (1.0, 1.0, 1.0)
    assert (scores.exact, scores.exact_share, scores.total, scores.errors) == (2, 1.0, 2, 0)


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence_with_stemming():
    scores = score(rows(("the cats run home", "the cat running")))
    precision, recall = 3 / 4, 3 / 3
    assert scores.rouge_l == pytest.approx(2 * precision * recall / (precision + recall))
    assert scores.exact == 0


def test_scores_are_means_over_the_rows_and_lengths_are_in_words():
    scores = score(rows(("a b c", "a b c"), ("", "d e")))
    assert scores.rouge_l == pytest.approx(0.5)
    assert (scores.prediction_length, scores.target_length) == (1.5, 2.5)
    assert (scores.exact, scores.exact_share) == (1, 0.5)


def test_rows_with_an_error_are_counted_and_left_out_of_every_mean():
    given, length = rows(("red", "red"), ("blue", "green")), {"length": lambda prediction, target: len(prediction)}
    with_errors, without = score([FAILED, given[0], FAILED, given[1]], length), score(given, length)
    assert (with_errors.total, with_errors.errors, with_errors.answered) == (4, 2, 2)
    assert [row is None for row in with_errors.rows] == [True, False, True, False]
    assert summarize([row for row in with_errors.rows if row], ["length"]) == without
    assert (with_errors.rouge_l, with_errors.exact_share, with_errors.metrics) == (0.5, 0.5, {"length": 3.5})


@pytest.mark.parametrize("given", [[], [FAILED]])
def test_without_an_answered_row_all_means_are_zero_and_show_as_a_dash(given):
    scores = score(given, {"mine": lambda prediction, target: 1})
    assert (scores.rouge_l, scores.token_f1, scores.anls, scores.exact_share, scores.metrics["mine"]) == (0, 0, 0, 0, 0)
    cells = ["none", "-", "-", "-", "0", "-", str(len(given)), "-", "-", str(len(given)), "-"]
    assert markdown_table({"none": scores}).splitlines()[2] == f"| {' | '.join(cells)} |"


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        ("The cat, sat!", "a CAT sat", 1),
        ("red blue", "blue green green", 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)),
        ("dog dog", "dog", 2 * (1 / 2) * 1 / (1 / 2 + 1)),
        ("cat", "dog", 0),
        ("", "", 1),
        ("the.", "", 1),
        ("", "dog", 0),
        ("a theatre", "theatre", 1),
        ("it's", "its", 1),
    ],
)
def test_token_f1_is_the_overlap_of_words_without_case_punctuation_and_articles(prediction, target, expected):
    assert token_f1(prediction, target) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        (" Hello ", "hello", 1),
        ("hallo", "hello", 1 - 1 / 5),
        ("kitten", "sitting", 1 - 3 / 7),
        ("abcd", "abxy", 0),  # half of it is already too far
        ("abcd", "ab", 0),
        ("abcde", "abc", 1 - 2 / 5),
        ("", "", 1),
        ("", "a", 0),
        ("2 000", "2000", 1 - 1 / 5),
    ],
)
def test_anls_is_one_less_the_edit_distance_and_zero_from_half_of_the_letters_on(prediction, target, expected):
    assert anls(prediction, target) == pytest.approx(expected)


@given(st.text("abc", max_size=80), st.text("abcé", max_size=80))
def test_the_edit_distance_is_that_of_the_whole_table(a, b):
    assert levenshtein(a, b) == plain_levenshtein(a, b)


@given(st.text("abA ", max_size=12), st.text("abA ", max_size=12))
def test_anls_follows_its_definition_for_any_texts(prediction, target):
    a, b = prediction.strip().lower(), target.strip().lower()
    distance = plain_levenshtein(a, b) / max(len(a), len(b), 1)
    assert anls(prediction, target) == pytest.approx(1 - distance if distance < 0.5 else 0)


def test_the_table_has_a_row_for_each_dataset_and_a_column_for_each_metric_of_the_user():
    scores = {
        "cats": score(rows(("A cat.", "A cat."), ("No", "Yes it is")), {"half": lambda prediction, target: 0.5}),
        "a|b": score([*rows(("a", "a")), FAILED]),
    }
    assert markdown_table(scores) == (
        "| Dataset | Avg ROUGE-L | Avg target length | Avg prediction length | Exact matches | Match percentage"
        " | Total samples | Token F1 | ANLS | Errors | half |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| cats | 0.5000 | 2.50 | 1.50 | 1 | 50.00% | 2 | 0.5000 | 0.5000 | 0 | 0.5000 |\n"
        "| a\\|b | 1.0000 | 1.00 | 1.00 | 1 | 100.00% | 2 | 1.0000 | 1.0000 | 1 | - |\n"
    )


def test_the_users_functions_get_prediction_and_target_of_each_answered_row():
    seen = []
    metrics = {"starts": lambda prediction, target: seen.append((prediction, target)) or target.startswith(prediction)}
    scores = score([*rows(("a", "abc"), ("b", "abc")), FAILED], metrics)
    assert seen == [("a", "abc"), ("b", "abc")]
    assert scores.metrics == {"starts": 0.5}
    assert [row and row.metrics["starts"] for row in scores.rows] == [1, 0, None]


@pytest.mark.parametrize("given", [None, "0.5", float("nan"), float("inf")])
def test_a_metric_that_gives_no_finite_number_is_named_with_its_row(given):
    with pytest.raises(ValueError, match=rf"metric odd gave {re.escape(repr(given))} for row 1"):
        score(rows(("a", "a")), {"odd": lambda prediction, target: given})


@pytest.fixture
def own(tmp_path):
    """A file of metrics."""
    path = tmp_path / "own.py"
    path.write_text("def shorter(prediction, target):\n    return len(prediction) < len(target)\n\nLIMIT = 3\n")
    return path


def test_metrics_come_from_files_and_modules_under_the_name_of_their_function(own):
    metrics = load_metrics([f"{own}:shorter", "open_flamingo.instruction_tuning.metrics:anls"])
    assert list(metrics) == ["shorter", "anls"]
    assert metrics["anls"] is anls
    assert score(rows(("a", "ab"), ("ab", "ab")), metrics).metrics["shorter"] == 0.5


def test_no_names_are_no_metrics():
    assert load_metrics([]) == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{own}", r"is not module:function or path/to/file\.py:function"),
        ("shorter", r"is not module:function or path/to/file\.py:function"),
        ("{own}:", r"is not module:function or path/to/file\.py:function"),
        ("gone.py:f", r"gone\.py:f: file gone\.py does not exist"),
        ("no_such_module:f", r"no_such_module cannot be imported \(ModuleNotFoundError: .*\)"),
        ("{own}:longer", r"own\.py has no longer"),
        ("{own}:LIMIT", r"LIMIT is not a function but int"),
        ("{broken}:f", r"broken\.py cannot be imported \(SyntaxError: .*\)"),
    ],
)
def test_a_name_that_leads_to_no_function_is_refused(own, name, message):
    broken = own.with_name("broken.py")
    broken.write_text("def f(:\n")
    with pytest.raises(ValueError, match=message):
        load_metrics([name.format(own=own, broken=broken)])


def test_two_functions_of_one_name_are_refused(own):
    with pytest.raises(ValueError, match="--metrics names two functions shorter"):
        load_metrics([f"{own}:shorter", f"{own}:shorter"])
