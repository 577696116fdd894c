"""Training as a command, on a toy task: what it learns, writes, continues and refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import EXACT
from toy import (
    CLOSE,
    COLORS,
    ROOT,
    TEXT_ONLY,
    TUNING,
    as_flags,
    kept_logging,
    question,
    scalars,
    train,
    weights,
    write_json_file,
    write_mixture,
    write_pictures,
)
from transformers import AutoModelForCausalLM

from open_flamingo.instruction_tuning.command import run as run_command
from open_flamingo.instruction_tuning.train import main

TAGS = {
    "train/loss",
    "train/lr",
    "train/grad_norm",
    "time/data_time",
    "time/step_time_m",
    "time/samples_per_second",
    "time/samples_per_second_per_gpu",
}
EMBEDDINGS = "lang_encoder.base_model.model.model.embed_tokens.weight"


def names(folder: Path) -> set[str]:
    """What a folder holds."""
    return {path.name for path in folder.iterdir()}


def test_the_loss_falls_on_a_task_that_can_be_learnt(toy_run):
    losses, accuracies = scalars(toy_run, "train/loss"), scalars(toy_run, "train/accuracy")
    assert sum(losses[-3:]) < 0.1 * sum(losses[:3])
    assert accuracies[-1] > 0.9


def test_the_run_folder_holds_log_configuration_events_and_a_checkpoint_per_epoch(short_run, toy_flags):
    assert names(short_run) == {"train.log", "config.json", "tensorboard", "checkpoint_0.pt", "checkpoint_1.pt"}
    config = json.loads((short_run / "config.json").read_text())
    assert {flag: str(config[flag]) for flag in ("batch_size", "num_epochs", "learning_rate", "seed")} == {
        "batch_size": "3",
        "num_epochs": "2",
        "learning_rate": "0.001",
        "seed": "42",
    }
    assert f"--instruction_data={config['instruction_data']}" in toy_flags
    log = (short_run / "train.log").read_text()
    assert re.search(r"colours \(input/output\) +6 +6 +100\.0% +1\.00 ", log)
    assert f"saved {short_run / 'checkpoint_1.pt'}" in log


def test_tensorboard_has_the_tags_of_2023_with_a_value_for_each_step(short_run):
    events = EventAccumulator(str(short_run / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= TAGS
    for tag in TAGS:
        assert [event.step for event in events.Scalars(tag)] == [1, 2, 3, 4]


def test_a_sample_is_shown_with_its_supervised_and_its_likeliest_text(toy_run):
    log = (toy_run / "train.log").read_text()
    shown = [
        line.partition(":")[0] for line in log.splitlines() if line.startswith(("input", "supervised", "predicted"))
    ]
    assert shown == ["input", "supervised", "predicted"] * 4
    assert "input:      ### Human: <image>" in log
    events = EventAccumulator(str(toy_run / "tensorboard"))
    events.Reload()
    assert len(events.Tensors("train/sample/text_summary")) == 4


def test_of_the_embeddings_only_the_rows_of_the_new_tokens_are_trained(short_run, tiny_lm):
    before = AutoModelForCausalLM.from_pretrained(tiny_lm).get_input_embeddings().weight.detach()
    first, second = (weights(short_run, epoch)[EMBEDDINGS] for epoch in (0, 1))
    torch.testing.assert_close(second[: len(before)], before, **EXACT)
    changed = (first != second).any(dim=1).nonzero().flatten()
    assert changed.tolist() == [len(before), len(before) + 1]


@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 3)])
def test_micro_batches_train_like_one_big_batch(toy_flags, short_run, tmp_path, batch_size, accumulation):
    split = train(
        toy_flags,
        run_name=tmp_path / "split",
        num_epochs=2,
        lr_scheduler="cosine",
        batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
    )
    torch.testing.assert_close(weights(split, 1), weights(short_run, 1), **CLOSE)
    for tag in ("train/loss", "train/lr", "train/grad_norm"):
        assert scalars(split, tag) == pytest.approx(scalars(short_run, tag), rel=1e-4)


def test_a_continued_run_ends_like_one_that_was_never_interrupted_to_the_bit(toy_flags, short_run, tmp_path):
    continued = train(
        [*toy_flags, "--continue_training"],
        run_name=tmp_path / "continued",
        resume_from_checkpoint=short_run / "checkpoint_0.pt",
        num_epochs=2,
        lr_scheduler="cosine",
        workers=1,
    )
    assert names(continued) == {"train.log", "config.json", "tensorboard", "checkpoint_1.pt"}
    torch.testing.assert_close(weights(continued, 1), weights(short_run, 1), **EXACT)
    for tag in ("train/loss", "train/lr"):
        assert scalars(continued, tag) == scalars(short_run, tag)[2:]
    events = EventAccumulator(str(continued / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [3, 4]


def test_a_continued_run_with_dropout_ends_like_one_that_was_never_interrupted(toy_flags, tmp_path):
    tuning = write_json_file(tmp_path / "tuning.json", TUNING | {"lora_dropout": 0.5})
    settings = {"num_epochs": 2, "tuning_config": tuning, "epoch_num_samples": 3}
    whole = train(toy_flags, run_name=tmp_path / "whole", **settings)
    checkpoint = whole / "checkpoint_0.pt"
    flags = [*toy_flags, "--continue_training", f"--resume_from_checkpoint={checkpoint}"]
    continued = train(flags, run_name=tmp_path / "continued", **settings)
    torch.testing.assert_close(weights(continued, 1), weights(whole, 1), **EXACT)


def test_resuming_without_continuing_takes_the_weights_and_starts_anew(toy_flags, toy_run, tmp_path):
    run = train(
        toy_flags,
        run_name=tmp_path / "resumed",
        tuning_config=toy_run.parent / "tuning.json",
        resume_from_checkpoint=toy_run / "checkpoint_0.pt",
        multiturn_augmentation=0,
    )
    assert "checkpoint_0.pt" in names(run)
    assert scalars(run, "train/lr")[0] == 0
    assert scalars(run, "train/loss")[0] < 0.2 * scalars(toy_run, "train/loss")[0]


def test_only_the_newest_checkpoint_is_kept_where_asked(toy_flags, tmp_path):
    flags = [*toy_flags, "--delete_previous_checkpoint"]
    run = train(flags, run_name=tmp_path / "run", num_epochs=3, epoch_num_samples=3)
    assert {name for name in names(run) if name.startswith("checkpoint")} == {"checkpoint_2.pt"}


@pytest.mark.parametrize("precision", ["amp_bf16", "amp_bfloat16", "bf16"])
def test_half_precision_trains_like_full_precision_but_for_rounding(toy_flags, short_run, tmp_path, precision):
    run = train(toy_flags, run_name=tmp_path / "run", num_epochs=2, lr_scheduler="cosine", precision=precision)
    assert scalars(run, "train/loss") == pytest.approx(scalars(short_run, "train/loss"), rel=0.05)
    assert {tensor.dtype for name, tensor in weights(run, 1).items() if name != EMBEDDINGS} == {torch.float32}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "amp_bf16"])
def test_gradient_checkpointing_changes_nothing(toy_flags, tmp_path, precision):
    settings = {"num_epochs": 2, "precision": precision}
    plain = train(toy_flags, run_name=tmp_path / "plain", **settings)
    saving = train([*toy_flags, "--gradient_checkpointing"], run_name=tmp_path / "saving", **settings)
    torch.testing.assert_close(weights(saving, 1), weights(plain, 1), **CLOSE)


def test_compiled_layers_train_like_plain_ones_and_generate(toy_flags, short_run, tmp_path):
    flags = [*toy_flags, "--compile"]
    run = train(flags, run_name=tmp_path / "run", num_epochs=2, lr_scheduler="cosine", logging_steps=2)
    torch.testing.assert_close(weights(run, 1), weights(short_run, 1), **CLOSE)
    assert (run / "train.log").read_text().count("generated: ") == 2


@pytest.mark.parametrize("unfrozen", [["perceiver"], ["gated_cross_attn_layer"]])
def test_half_precision_trains_beside_frozen_blocks_or_a_frozen_resampler(toy_flags, tmp_path, unfrozen):
    tuning = TUNING | {"unfrozen": unfrozen, "learning_rates": {}}
    losses = [
        scalars(
            train(
                toy_flags,
                run_name=tmp_path / precision,
                tuning_config=write_json_file(tmp_path / "tuning.json", tuning),
                precision=precision,
            ),
            "train/loss",
        )
        for precision in ("fp32", "bf16")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_the_same_flags_train_the_same_weights_with_another_number_of_workers(toy_flags, short_run, tmp_path):
    run = train(toy_flags, run_name=tmp_path / "run", num_epochs=2, lr_scheduler="cosine", workers=2)
    torch.testing.assert_close(weights(run, 1), weights(short_run, 1), **EXACT)


def test_records_without_images_train(toy_flags, tmp_path):
    data = write_json_file(tmp_path / "text.json", TEXT_ONLY)
    run = train(toy_flags, run_name=tmp_path / "run", instruction_data=data, batch_size=2, train_num_samples=40)
    losses = scalars(run, "train/loss")
    assert len(losses) == 20
    assert losses[-1] < losses[0]


def test_several_datasets_train_together(toy_flags, tmp_path):
    write_pictures(tmp_path)
    data = write_mixture(tmp_path, colours=[question(color) for color in COLORS], text=TEXT_ONLY)
    run = train(toy_flags, run_name=tmp_path / "run", instruction_data=data, dataset_sampling_mode="sqrt")
    log = (run / "train.log").read_text()
    assert re.search(r"colours \(input/output\) +3 +3 +60\.0% +1\.00 ", log)
    assert re.search(r"text \(input/output\) +2 +2 +40\.0% +1\.00 ", log)


def malformed(folder: Path, text: str) -> Path:
    """A file of this text."""
    path = folder / "malformed.json"
    path.write_text(text)
    return path


MISTAKES = {
    "a missing image": (
        lambda folder: {"instruction_data": write_mixture(folder, colours=[question("red")])},
        r"colours\.json, record 1: image .*red\.png does not exist",
    ),
    "malformed JSON": (
        lambda folder: {"instruction_data": malformed(folder, '[\n{"input": "a" "output": "b"}]')},
        r"malformed\.json, line 2, column 15",
    ),
    "an unknown tuning key": (
        lambda folder: {"tuning_config": write_json_file(folder / "tuning.json", TUNING | {"lora_rank": 2})},
        r"tuning\.json: unknown key 'lora_rank'",
    ),
    "a tuning config of another language model": (
        lambda folder: {
            "tuning_config": write_json_file(folder / "tuning.json", TUNING | {"lora_target_modules": ["Wqkv"]})
        },
        "'Wqkv' matches no module",
    ),
    "an unknown language model": (
        lambda folder: {"lm_path": folder / "nowhere"},
        "language model .*nowhere|tokenizer .*nowhere",
    ),
    "a language model folder without a model": (lambda folder: {"lm_path": folder}, "folder without a configuration"),
    "an unknown vision encoder": (
        lambda folder: {"vision_encoder_path": "ViT-Z-99"},
        "unknown vision encoder 'ViT-Z-99'",
    ),
    "unknown weights of a vision encoder": (
        lambda folder: {"vision_encoder_path": "ViT-S-16-alt", "vision_encoder_pretrained": "nowhere"},
        "vision encoder 'ViT-S-16-alt' with weights 'nowhere'",
    ),
    "too many layers between blocks": (
        lambda folder: {"cross_attn_every_n_layers": 9},
        "cross_attn_every_n_layers is 9, but .* has 4 layers",
    ),
    "a run folder below a file": (
        lambda folder: {"run_name": malformed(folder, "") / "run"},
        "the run folder .* cannot be written",
    ),
    "a missing checkpoint": (
        lambda folder: {"resume_from_checkpoint": folder / "nowhere.pt"},
        r"checkpoint .*nowhere\.pt does not exist",
    ),
    "an epoch smaller than a batch": (
        lambda folder: {"batch_size": 100},
        "an epoch of 6 samples does not fill one batch of 100",
    ),
    "no usable record": (lambda folder: {"max_length": 5}, "usable|an epoch of 0 samples"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_in_one_sentence_before_the_run_folder_is_made(toy_flags, tmp_path, mistake):
    changes, message = MISTAKES[mistake]
    changes = {"run_name": tmp_path / "runs" / "run"} | changes(tmp_path)
    with pytest.raises(ValueError, match=message) as refusal:
        train(toy_flags, **changes)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "runs").exists()


def test_continuing_from_weights_alone_is_refused(toy_flags, short_run, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(weights(short_run), path)
    flags = [*toy_flags, "--continue_training"]
    with pytest.raises(ValueError, match=r"weights\.pt lacks"):
        train(flags, run_name=tmp_path / "run", resume_from_checkpoint=path)


def test_continuing_from_a_checkpoint_of_2023_is_refused(toy_flags, short_run, tmp_path):
    """It has an optimizer and a schedule, but counts no steps and splits the parameters in another way."""
    content = torch.load(short_run / "checkpoint_0.pt", weights_only=True)
    kept = ("epoch", "model_state_dict", "optimizer_state_dict", "lr_scheduler_state_dict")
    torch.save({name: content[name] for name in kept}, tmp_path / "old.pt")
    flags = [*toy_flags, "--continue_training"]
    with pytest.raises(ValueError, match=r"old\.pt"):
        train(flags, run_name=tmp_path / "run", resume_from_checkpoint=tmp_path / "old.pt")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_ends_the_command_with_one_line_that_names_it(toy_flags, tmp_path, capsys, workers):
    write_pictures(tmp_path)
    (tmp_path / "green.png").write_bytes(b"no picture")
    data = write_mixture(tmp_path, colours=[question(color) for color in COLORS])
    settings = as_flags(run_name=tmp_path / "run", instruction_data=data, workers=workers)
    with kept_logging(), pytest.raises(SystemExit) as end:
        run_command(lambda: main([*toy_flags, *settings]))
    errors = capsys.readouterr().err
    assert end.value.code == 1
    assert re.search(rf"^error: .*image {tmp_path}/green\.png is not an image.*$", errors, re.MULTILINE)
    assert "Traceback" not in errors


def test_a_run_that_diverges_is_stopped_after_ten_skipped_steps_with_its_records_named(toy_flags, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(
        ValueError, match=r"10 steps in a row were skipped.*colours\.json, record.*lower --learning_rate"
    ):
        train(toy_flags, run_name=run, learning_rate=1e30, warmup_steps=0, train_num_samples=60)
    log = (run / "train.log").read_text()
    assert log.count("is skipped: the loss is nan, with ") == 10
    assert scalars(run, "train/skipped_steps")[-10:] == list(range(1, 11))


def command(*flags: str) -> subprocess.CompletedProcess[str]:
    """Training as a user starts it."""
    script = ROOT / "open_flamingo" / "instruction_tuning" / "train.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(script), *flags], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("mistake", ["malformed JSON", "a missing image"])
def test_a_mistake_ends_the_command_with_code_1_and_one_line(toy_flags, tmp_path, mistake):
    changes, message = MISTAKES[mistake]
    ended = command(*toy_flags, *as_flags(run_name=tmp_path / "runs" / "run", **changes(tmp_path)))
    (line,) = (line for line in ended.stderr.splitlines() if "error" in line.lower())
    assert ended.returncode == 1
    assert line.startswith("error: ")
    assert re.search(message, line)
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert not (tmp_path / "runs").exists()
