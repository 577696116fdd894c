"""The main job on real weights and real images: a few steps of it always, the whole quickstart when asked for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[1]
PARTS = ROOT / "runs" / "quickstart" / "parts"
"""Shared with the quickstart: the download is made once."""
TUNING = ROOT / "open_flamingo" / "instruction_tuning" / "tuning_config" / "from_scratch-llama.json"


def python(*arguments: object, timeout: int = 600) -> str:
    """The standard output of a Python command that must end well."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_few_steps_on_real_weights_lower_the_loss_and_the_model_answers(tmp_path):
    python("scripts/fetch_parts.py", PARTS)
    python("-m", "instruction_dataset.digits", "--output", tmp_path / "digits")
    flags = {
        "instruction_data": tmp_path / "digits" / "train.json",
        "instruction_prompt_templete": "guanaco-no-prompt",
        "run_name": tmp_path / "run",
        "vision_encoder_path": PARTS / "vision",
        "lm_path": PARTS / "lm",
        "cross_attn_every_n_layers": 10,
        "resampler_depth": 2,
        "resampler_latents": 16,
        "tuning_config": TUNING,
        "precision": "bf16",
        "max_length": 64,
        "multiturn_augmentation": 0,
        "batch_size": 4,
        "train_num_samples": 48,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "workers": 0,
    }
    arguments = [text for name, value in flags.items() for text in (f"--{name}", value)]
    python("open_flamingo/instruction_tuning/train.py", "--freeze_lm_embeddings", *arguments)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    losses = [event.value for event in events.Reload().Scalars("train/loss")]
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])

    checkpoint, image = tmp_path / "run" / "checkpoint_0.pt", tmp_path / "digits" / "images" / "0393.png"
    question = ["--image", image, "--max_new_token", 4, "Which digit is shown?"]
    answer = python("-m", "open_flamingo.instruction_tuning.ask", "--checkpoint", checkpoint, *question)
    assert re.fullmatch(r"[^\n]*\n", answer)


@pytest.mark.slow
def test_the_quickstart_reads_95_of_100_held_out_digits():
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [ROOT / "scripts" / "quickstart.sh"], env=environment, capture_output=True, text=True, timeout=3000, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    share = re.search(r"\| digits-which \|.*\| ([\d.]+)% \|", done.stdout)
    assert share, done.stdout
    assert float(share[1]) >= 95
    assert (ROOT / "runs" / "quickstart" / "curve.png").is_file()
