"""Drawing a run: what is no run is refused in a line."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "plot_run.py"


@pytest.mark.parametrize("name", ["mistyped", "empty"])
def test_a_folder_without_a_training_log_is_refused_in_a_line(tmp_path, name):
    (tmp_path / "empty" / "tensorboard").mkdir(parents=True)
    ended = subprocess.run([sys.executable, SCRIPT, tmp_path / name], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    message = f"error: {tmp_path / name} holds no training log (tensorboard/); give the folder named by --run_name\n"
    assert ended.stderr == message
