"""The flags of the commands: those of the design document parse, and values that cannot be are refused by name."""

import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from open_flamingo.instruction_tuning import instruction_dataset_inference, train
from open_flamingo.instruction_tuning.command import parse
from open_flamingo.instruction_tuning.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainedConfig
from open_flamingo.instruction_tuning.instruction_dataset_inference import DataFlags, GenerationFlags

TRAINING = [ModelConfig, DataConfig, OptimConfig, RunConfig]
INFERENCE = [TrainedConfig, DataFlags, GenerationFlags]
REQUIRED = ["--instruction_data", "data.json", "--tuning_config", "tuning.json"]

TRAINING_COMMAND = """
    --instruction_data 'instruction_dataset/configs/datasets.json'
    --instruction_prompt_templete 'guanaco-no-prompt'
    --run_name 'runs/0709-clever_flamingo_v2-8x80g-2k_context'
    --seed 42
    --vision_encoder_path 'ViT-L-14-336'
    --lm_path 'anas-awadalla/mpt-7b'
    --tokenizer_path 'anas-awadalla/mpt-7b'
    --freeze_lm_embeddings
    --tuning_config 'open_flamingo/instruction_tuning/tuning_config/lora[lm+xqttn]+perceiver.json'
    --resume_from_checkpoint '/path/to/cached/OpenFlamingo-9B-vitl-mpt7b.pt'
    --max_length 2048
    --multiturn_augmentation 32
    --max_img 16
    --cross_attn_every_n_layers 4
    --batch_size 2
    --learning_rate 5e-5
    --gradient_accumulation_steps 4
    --precision 'bf16'
    --train_num_samples 100000
    --workers 32
    --num_epochs 100
    --lr_scheduler constant
    --warmup_steps 1000
    --logging_steps 500
"""
INFERENCE_COMMAND = """
    --lm_path "anas-awadalla/mpt-7b"
    --vision_encoder_path "ViT-L-14-336"
    --vision_encoder_pretrained "openai"
    --tuning_config 'open_flamingo/instruction_tuning/tuning_config/lora[lm+xqttn]+perceiver.json'
    --checkpoint_paths 'OpenFlamingo-9B-vitl-mpt7b.pt,checkpoint_3.pt'
    --cross_attn_every_n_layers 4
    --instruction_path 'datasets.json'
    --instruction_prompt_templete 'guanaco-no-prompt'
    --num_samples -1
    --max_new_token 1024
    --no_repeat_ngram_size 3
    --num_beams 1
    --seed 42
    --results_dir "predictions_validation/"
"""


def values(configs: list[type], argv: list[str]) -> dict[str, object]:
    """All values that a command line gives."""
    parts = parse("", configs, argv)
    return {f.name: getattr(part, f.name) for part in parts for f in fields(part)}


def test_the_training_command_of_the_design_document_parses():
    given = values(TRAINING, shlex.split(TRAINING_COMMAND))
    assert (
        given
        | {
            "instruction_data": Path("instruction_dataset/configs/datasets.json"),
            "instruction_prompt_template": "guanaco-no-prompt",
            "tokenizer_path": "anas-awadalla/mpt-7b",
            "freeze_lm_embeddings": True,
            "resume_from_checkpoint": "/path/to/cached/OpenFlamingo-9B-vitl-mpt7b.pt",
            "max_length": 2048,
            "multiturn_augmentation": 32,
            "max_img": 16,
            "cross_attn_every_n_layers": 4,
            "batch_size": 2,
            "learning_rate": 5e-5,
            "gradient_accumulation_steps": 4,
            "precision": "bf16",
            "train_num_samples": 100000,
            "workers": 32,
            "num_epochs": 100,
            "lr_scheduler": "constant",
            "warmup_steps": 1000,
            "logging_steps": 500,
        }
        == given
    )


def test_the_inference_command_of_the_design_document_parses():
    given = values(INFERENCE, shlex.split(INFERENCE_COMMAND))
    assert given["checkpoint_paths"] == "OpenFlamingo-9B-vitl-mpt7b.pt,checkpoint_3.pt"
    assert given["instruction_prompt_template"] == "guanaco-no-prompt"
    assert (given["num_samples"], given["max_new_token"], given["num_beams"]) == (-1, 1024, 1)


def test_the_defaults_of_training_are_those_of_2023():
    expected = {
        "instruction_prompt_template": "guanaco",
        "max_length": 256,
        "multiturn_augmentation": 1,
        "max_img": 5,
        "dataset_sampling_mode": "ratio",
        "continue_training": False,
        "skip_check_overlength": False,
        "epoch_num_samples": -1,
        "vision_encoder_path": "ViT-L-14",
        "vision_encoder_pretrained": "openai",
        "lm_path": "facebook/opt-1.3b",
        "cross_attn_every_n_layers": 1,
        "delete_previous_checkpoint": False,
        "batch_size": 128,
        "gradient_accumulation_steps": 1,
        "seed": 42,
        "learning_rate": 1e-4,
        "lr_scheduler": "constant",
        "warmup_steps": 5000,
        "weight_decay": 0.1,
        "precision": "fp32",
        "gradient_checkpointing": False,
        "num_epochs": 1,
        "offline": False,
        "freeze_lm_embeddings": False,
        "logging_steps": 100,
        "workers": 1,
        "train_num_samples": 10000,
        "dist_url": "env://",
    }
    given = values(TRAINING, REQUIRED)
    assert {name: given[name] for name in expected} == expected


def test_flags_spelt_with_hyphens_in_2023_still_are():
    argv = [*REQUIRED, "--dist-url", "tcp://here:1", "--dist-backend", "gloo", "--no-set-device-rank"]
    given = values(TRAINING, argv)
    assert (given["dist_url"], given["dist_backend"], given["no_set_device_rank"]) == ("tcp://here:1", "gloo", True)


def test_sampling_can_be_turned_off():
    argv = ["--checkpoint_paths", "a.pt", "--instruction_path", "a.json", "--do_sample", "False"]
    assert values(INFERENCE, argv)["do_sample"] is False


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--max_length", "0", "--max_length must be at least 1, not 0"),
        ("--max_img", "-1", "--max_img must be at least 0, not -1"),
        ("--workers", "-1", "--workers must be at least 0, not -1"),
        ("--train_num_samples", "-2", "--train_num_samples must be at least -1, not -2"),
        ("--batch_size", "0", "--batch_size must be at least 1, not 0"),
        ("--gradient_accumulation_steps", "0", "--gradient_accumulation_steps must be at least 1, not 0"),
        ("--num_epochs", "0", "--num_epochs must be at least 1, not 0"),
        ("--learning_rate", "0", "--learning_rate must be positive, not 0"),
        ("--logging_steps", "0", "--logging_steps must be at least 1, not 0"),
        ("--precision", "fp8", "argument --precision: invalid choice: 'fp8'"),
        ("--lr_scheduler", "step", "argument --lr_scheduler: invalid choice: 'step'"),
        ("--instruction_prompt_templete", "vicuna", "invalid choice: 'vicuna'"),
        ("--save_checkpoints_to_wandb", "true", "--save_checkpoints_to_wandb needs --report_to_wandb"),
        ("--val_steps", "5", "--val_steps needs the held-out data: --val_data FILE"),
        ("--keep_last", "0", "--keep_last must be at least 1, not 0"),
        ("--instruction_dta", "x", "unrecognized arguments: --instruction_dta x"),
    ],
)
def test_a_bad_training_flag_ends_with_code_2_and_a_message(capsys, flag, value, message):
    with pytest.raises(SystemExit) as end:
        train.main([*REQUIRED, flag, value])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("command", "configs"), [(train, TRAINING), (instruction_dataset_inference, INFERENCE)])
def test_help_ends_with_code_0_and_names_every_flag(capsys, command, configs):
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    for config in configs:
        for f in fields(config):
            for option in (f"--{f.name}", *f.metadata["aliases"]):
                assert option in out
