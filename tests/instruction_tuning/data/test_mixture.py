"""Which records make an epoch: exact shares, draws without repetition where they can be, the same for the same seed."""

import math
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from open_flamingo.instruction_tuning.data.mixture import draw_epoch, sample_counts

DATASETS = st.lists(
    st.tuples(st.integers(0, 10_000), st.one_of(st.just(0.0), st.floats(1e-3, 1e3), st.integers(0, 500).map(float))),
    min_size=1,
    max_size=8,
)
SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=5)


@given(DATASETS, st.sampled_from(["ratio", "sqrt"]), st.integers(0, 100_000))
def test_counts_sum_to_the_total_and_lie_within_one_of_each_share(datasets, mode, total):
    sizes, ratios = map(list, zip(*datasets, strict=True))
    weights = [math.sqrt(size) if mode == "sqrt" else ratio if size else 0.0 for size, ratio in datasets]
    assume(sum(weights) > 0)
    counts = sample_counts(sizes, ratios, mode, total)
    assert sum(counts) == total
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) <= 1
        assert count == 0 or weight > 0


@pytest.mark.parametrize(
    ("mode", "counts"),
    [("ratio", [25, 75]), ("sqrt", [90, 10])],
)
def test_shares_follow_the_ratios_or_the_square_roots_of_the_sizes(mode, counts):
    assert sample_counts([8100, 100], [1.0, 3.0], mode, 100) == counts


@pytest.mark.parametrize(("sizes", "ratios", "mode"), [([0, 0], [1, 1], "sqrt"), ([5, 0], [0, 1], "ratio")])
def test_a_mixture_that_can_give_no_record_is_refused(sizes, ratios, mode):
    with pytest.raises(ValueError, match="no dataset with a positive ratio has a usable record"):
        sample_counts(sizes, ratios, mode, 10)


@given(SIZES, st.data(), st.integers(), st.integers(0, 100))
def test_a_draw_has_the_counts_and_repeats_a_record_only_where_a_dataset_is_too_small(sizes, data, seed, epoch):
    counts = [data.draw(st.integers(0, 60)) for _ in sizes]
    pool = draw_epoch(sizes, counts, seed, epoch)
    drawn = Counter(dataset for dataset, _ in pool)
    for dataset, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        records = [record for source, record in pool if source == dataset]
        assert drawn[dataset] == len(records) == count
        assert all(0 <= record < size for record in records)
        assert count > size or len(set(records)) == count


@given(SIZES, st.integers(), st.integers(0, 100))
def test_counts_equal_to_the_sizes_give_each_record_once(sizes, seed, epoch):
    pool = draw_epoch(sizes, sizes, seed, epoch)
    assert sorted(pool) == [(dataset, record) for dataset, size in enumerate(sizes) for record in range(size)]


def test_the_same_seed_and_epoch_give_the_same_draw_and_others_another():
    draws, again = (
        [list(draw_epoch([1000, 50], [100, 80], seed, epoch)) for seed in (0, 1) for epoch in (0, 1)] for _ in range(2)
    )
    assert draws == again
    assert len({tuple(draw) for draw in draws}) == len(draws)
    assert len({frozenset(draw) for draw in draws}) == len(draws)
