"""Several ranks answer what one rank answers, whoever began."""

import os
import subprocess
import sys

import pytest
from answerers import answered, command, end, files, kill, start, until, write_records
from toy import ROOT

from open_flamingo.instruction_tuning.instruction_dataset_inference import main

SCRIPT = ROOT / "open_flamingo" / "instruction_tuning" / "instruction_dataset_inference.py"


@pytest.fixture(scope="module")
def flags(toy_run, tmp_path_factory):
    """A function that gives the flags of the command: `flags(results_dir)`."""
    data = write_records(tmp_path_factory.mktemp("records"))
    return lambda results: command(toy_run / "checkpoint_0.pt", data, results)


@pytest.fixture(scope="module")
def single(flags, tmp_path_factory):
    """The results of one rank."""
    results = tmp_path_factory.mktemp("single")
    assert main(flags(results)) == 1
    return files(results)


def test_two_ranks_under_torchrun_write_the_files_of_one(flags, single, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(SCRIPT), *flags(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1
    assert "2 of 24 records could not be answered" in done.stderr
    assert done.stdout.encode() == single["summary.md"]
    assert files(tmp_path) == single


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_a_killed_run_is_continued_by_another_number_of_ranks(flags, single, tmp_path, before, after):
    processes = start(flags(tmp_path), tmp_path / "log", before)
    until(lambda: answered(tmp_path) >= 2, processes)
    kill(processes)
    assert answered(tmp_path) >= 2
    codes = end(start(flags(tmp_path), tmp_path / "log", after))
    assert codes == [1] + [0] * (after - 1)
    assert "continuing: " in (tmp_path / "log.0").read_text()
    assert files(tmp_path) == single
