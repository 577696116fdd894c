"""PF-1M: the answers of the highest reward are kept, and those that are cut short never."""

import json
import re

import pytest

from instruction_dataset.converting import Job
from instruction_dataset.sources.pf_1m import KEPT, SOURCES, convert

CUT = {"input": "a", "output": "cut ...", "reward": 9.0}


def rated(*rewards):
    return [{"input": f"q{i}", "output": f"{i}", "reward": reward} for i, reward in enumerate(rewards)]


def answers(folder, rows, kept, **flags):
    (folder / "PF-1M.json").write_text(json.dumps(rows))
    job = Job(**flags)
    return [record.output for record in convert(folder, job, kept=kept)], job


def test_the_highest_rewards_are_kept_in_the_order_of_the_file(tmp_path):
    kept, job = answers(tmp_path, [*rated(0.5, -3, 7, 2), CUT], 2)
    assert kept == ["2", "3"]
    assert job.left_out == {"the reward is not among the highest": 2, "the answer is cut short": 1}


def test_of_equal_rewards_the_first_are_kept(tmp_path):
    assert answers(tmp_path, rated(1, 2, 1, 1), 3)[0] == ["0", "1", "2"]


def test_what_is_never_written_takes_no_place_among_those_kept(tmp_path):
    blank = {"input": "a", "output": " ", "reward": 9.0}
    malformed = [{**blank, "output": "b", **change} for change in ({"input": "<img_path>a"}, {"output": "<img_path>"})]
    kept, job = answers(tmp_path, [blank, *malformed, *rated(1, 2, 0.5)], 2, skip_bad=True)
    assert kept == ["0", "1"]
    assert (job.malformed, job.left_out) == (2, {"the answer is empty": 1, "the reward is not among the highest": 1})


def test_as_2023_the_first_ones_are_kept_whatever_their_reward(tmp_path):
    assert answers(tmp_path, [CUT, *rated(0.5, -3, 7, 2)], 2, as_2023=True)[0] == ["0", "1"]


def test_as_many_are_kept_as_the_source_says():
    assert SOURCES["pf-1m"].records == KEPT == 800_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": None}, "field 'reward' must be a number, not null"),
        ({"reward": True}, "field 'reward' must be a number, not true or false"),
        ({"reward": float("nan")}, "field 'reward' must be a finite number, not nan"),
        ({"output": 1}, "field 'output' must be a string, not a number"),
        ({"output": "see <img_path>a<img_path>"}, "its text holds '<img_path>'"),
        ({"input": "see <img_path>a"}, "an image tag is not closed"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place_or_skipped(tmp_path, change, message):
    rows = rated(1, 2, 3)
    rows[1].update(change)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'PF-1M.json'}, record 2: {message}")):
        answers(tmp_path, rows, 3)
    kept, job = answers(tmp_path, rows, 3, skip_bad=True)
    assert (kept, len(job.bad)) == (["0", "2"], 1)
