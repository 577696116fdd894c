"""What a run shows: the loss of each dataset, held-out data, the model's own answers with their pictures, progress."""

import json
import re
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import END_OF_TEXT, EXACT
from toy import (
    COLORS,
    TEXT_ONLY,
    TUNING,
    question,
    scalars,
    train,
    weights,
    write_json_file,
    write_mixture,
    write_pictures,
)

TAGS = {
    "data/padding",
    "data/replaced_samples",
    "memory/peak_gib",
    "time/tokens_per_second",
    "train/accuracy",
    "train/skipped_steps",
}

TEXT = f"([^<]*{re.escape(END_OF_TEXT)})"


def events_of(run) -> EventAccumulator:
    """All that a run wrote for TensorBoard."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    events.Reload()
    return events


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """The colours and the questions without picture, as two datasets."""
    folder = tmp_path_factory.mktemp("mixture")
    write_pictures(folder)
    return write_mixture(folder, colours=[question(color) for color in COLORS], text=TEXT_ONLY * 2)


@pytest.fixture(scope="module")
def learnt(toy_flags, toy_run, mixture, tmp_path_factory):
    """A run that begins with what the toy run has learnt, and validates on the same questions."""
    return train(
        toy_flags,
        run_name=tmp_path_factory.mktemp("seen") / "run",
        tuning_config=toy_run.parent / "tuning.json",
        resume_from_checkpoint=toy_run / "checkpoint_0.pt",
        instruction_data=mixture,
        multiturn_augmentation=0,
        train_num_samples=12,
        learning_rate=1e-4,
        logging_steps=2,
        val_data=mixture,
        val_steps=2,
        val_answers=3,
    )


def test_tensorboard_has_the_numbers_of_each_step_and_of_each_dataset(learnt):
    tags = set(events_of(learnt).Tags()["scalars"])
    assert tags >= TAGS
    assert {tag for tag in tags if "by_dataset" in tag} == {
        f"{stage}/loss_by_dataset/{name}" for stage in ("train", "val") for name in ("colours", "text")
    }
    assert scalars(learnt, "train/skipped_steps") == [0, 0, 0, 0]
    assert min(scalars(learnt, "time/tokens_per_second")) > 0


def test_the_losses_of_the_datasets_add_up_to_that_of_the_validation(learnt):
    """Answers of both datasets are counted by their tokens: each colour is one word, each text is longer."""
    whole = scalars(learnt, "val/loss")
    parts = [scalars(learnt, f"val/loss_by_dataset/{name}") for name in ("colours", "text")]
    assert len(whole) == 2  # after steps 2 and 4, which ends the epoch
    for loss, *of_parts in zip(whole, *parts, strict=True):
        assert min(of_parts) <= loss <= max(of_parts)


def test_a_shown_sample_has_its_picture_and_the_answer_that_the_model_generates(learnt):
    log = (learnt / "train.log").read_text()
    shown = re.findall(rf"supervised: +{TEXT}\npredicted: +{TEXT}\ngenerated: +{TEXT}\n", log)
    assert len(shown) == 2
    for supervised, predicted, generated in shown:
        assert supervised == predicted == generated
    validated = re.findall(rf"supervised: +{TEXT}\ngenerated: +{TEXT}\n", log)
    assert len(validated) == 2 * 3
    assert all(supervised == generated for supervised, generated in validated)
    tags = events_of(learnt).Tags()["images"]
    assert any(tag.startswith("val/answer_") for tag in tags)


def test_a_shown_picture_is_the_picture_of_the_record(toy_flags, toy_data, tmp_path):
    write_pictures(tmp_path)
    data = write_mixture(tmp_path, colours=[question("red")] * 3)
    run = train(toy_flags, run_name=tmp_path / "run", instruction_data=data, multiturn_augmentation=0, logging_steps=1)
    picture = events_of(run).Images("train/sample_images")[0]
    assert (picture.width, picture.height) == (32, 32)
    middle = np.asarray(Image.open(BytesIO(picture.encoded_image_string)))[16, 16]
    assert np.abs(middle.astype(int) - [255, 0, 0]).max() <= 3


def test_validation_changes_nothing_of_the_training(toy_flags, short_run, toy_data, tmp_path):
    run = train(
        toy_flags,
        run_name=tmp_path / "run",
        num_epochs=2,
        lr_scheduler="cosine",
        val_data=toy_data,
        val_steps=1,
        val_answers=1,
        logging_steps=1,
    )
    torch.testing.assert_close(weights(run, 1), weights(short_run, 1), **EXACT)
    assert scalars(run, "train/loss") == scalars(short_run, "train/loss")


def test_the_best_checkpoint_is_the_one_of_the_lowest_validation_loss(toy_flags, toy_run, toy_data, tmp_path):
    """A rate far too high spoils what the toy run has learnt; the first step is at rate zero."""
    run = train(
        toy_flags,
        run_name=tmp_path / "run",
        tuning_config=toy_run.parent / "tuning.json",
        resume_from_checkpoint=toy_run / "checkpoint_0.pt",
        learning_rate=0.5,
        val_data=toy_data,
        val_steps=1,
        val_answers=0,
    )
    losses = scalars(run, "val/loss")
    best = torch.load(run / "best.pt", weights_only=True)
    assert losses[0] < losses[1]
    assert (best["step"], best["best_loss"]) == (1, pytest.approx(losses[0]))


def test_validation_takes_the_same_drawn_records_each_time(toy_flags, toy_data, tmp_path):
    settings = {"val_data": toy_data, "val_steps": 1, "val_answers": 0, "val_num_samples": 2, "learning_rate": 1e-12}
    settings["tuning_config"] = write_json_file(tmp_path / "tuning.json", TUNING | {"learning_rates": {}})
    losses = scalars(train(toy_flags, run_name=tmp_path / "run", **settings), "val/loss")
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-6)


def test_the_settings_of_a_run_are_in_its_folder(learnt):
    config = json.loads((learnt / "config.json").read_text())
    assert (config["val_steps"], config["on_bad_image"]) == (2, "error")
