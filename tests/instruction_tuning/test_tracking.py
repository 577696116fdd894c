"""Where a run is seen: its files on the main rank, silence on the others, and a refusal before any work is done."""

import json
import logging
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import scalars

from open_flamingo.instruction_tuning.config import RunConfig
from open_flamingo.instruction_tuning.tracking import log_to_terminal, open_run, refuse_unwritable

logger = logging.getLogger("open_flamingo.test")


def test_the_main_rank_writes_log_config_and_events(tmp_path):
    run = tmp_path / "runs" / "new"
    log_to_terminal(is_main=True)
    tracker = open_run(RunConfig(run_name=run), {"lr": 0.1, "data": Path("a.json")}, first_step=1, is_main=True)
    logger.info("all is well")
    tracker.scalars({"train/loss": 2.0}, 1)
    tracker.scalars({"train/loss": 1.0}, 2)
    tracker.text("train/sample", "input: <image>", 2)
    tracker.close()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO all is well\n", (run / "train.log").read_text())
    assert json.loads((run / "config.json").read_text()) == {"lr": 0.1, "data": "a.json"}
    assert scalars(run, "train/loss") == [2.0, 1.0]
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert events.Tags()["tensors"] == ["train/sample/text_summary"]


def test_a_run_that_goes_on_replaces_what_was_logged_after_its_checkpoint(tmp_path):
    run = RunConfig(run_name=tmp_path / "run")
    for first_step, losses in ((1, [3.0, 2.0, 9.0]), (3, [1.0])):
        tracker = open_run(run, {}, first_step=first_step, is_main=True)
        for step, loss in enumerate(losses, start=first_step):
            tracker.scalars({"train/loss": loss}, step)
        tracker.close()
    assert scalars(run.run_name, "train/loss") == [3.0, 2.0, 1.0]


def test_other_ranks_write_nothing(tmp_path):
    tracker = open_run(RunConfig(run_name=tmp_path / "run"), {}, first_step=1, is_main=False)
    tracker.scalars({"train/loss": 2.0}, 1)
    tracker.text("train/sample", "text", 1)
    tracker.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("is_main", "seen"), [(True, ["news", "trouble"]), (False, ["trouble"])])
def test_the_terminal_shows_news_on_the_main_rank_and_trouble_on_all(capsys, is_main, seen):
    log_to_terminal(is_main=is_main)
    logger.debug("detail")
    logger.info("news")
    logger.warning("trouble")
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == seen


def test_a_run_folder_that_can_be_made_is_accepted_and_not_made(tmp_path):
    refuse_unwritable(tmp_path)
    refuse_unwritable(tmp_path / "new" / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run", ["file", "file/run", "file/runs/run"])
def test_a_run_folder_at_or_below_a_file_is_refused(tmp_path, run):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written .* choose another with --run_name"):
        refuse_unwritable(tmp_path / run)
