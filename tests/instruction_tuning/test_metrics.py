"""Scores of predictions against targets, and the table that shows them."""

import pytest

from open_flamingo.instruction_tuning.metrics import markdown_table, score


def test_equal_texts_score_one_and_are_counted_as_exact_but_for_space_around_them():
    scores = score(["A cat. ", "Two dogs."], ["A cat.", "Two dogs."])
    assert (scores.rouge_l, scores.exact, scores.exact_share, scores.total) == (1.0, 2, 1.0, 2)


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence_with_stemming():
    scores = score(["the cats run home"], ["the cat running"])
    precision, recall = 3 / 4, 3 / 3
    assert scores.rouge_l == pytest.approx(2 * precision * recall / (precision + recall))
    assert scores.exact == 0


def test_scores_are_means_over_the_pairs_and_lengths_are_in_words():
    scores = score(["a b c", ""], ["a b c", "d e"])
    assert scores.rouge_l == pytest.approx(0.5)
    assert (scores.prediction_length, scores.target_length) == (1.5, 2.5)
    assert (scores.exact, scores.exact_share) == (1, 0.5)


def test_predictions_and_targets_of_different_number_are_refused():
    with pytest.raises(ValueError, match="zip"):
        score(["a"], ["a", "b"])


def test_the_table_has_a_row_for_each_dataset():
    table = markdown_table({"cats": score(["A cat.", "No"], ["A cat.", "Yes it is"]), "dogs": score(["a"], ["a"])})
    assert table == (
        "| Dataset | Avg ROUGE-L | Avg target length | Avg prediction length | Exact matches | Match percentage"
        " | Total samples |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        "| cats | 0.5000 | 2.50 | 1.50 | 1 | 50.00% | 2 |\n"
        "| dogs | 1.0000 | 1.00 | 1.00 | 1 | 100.00% | 1 |\n"
    )
