"""Tiny random parts and a toy task on disk, made offline once per session, and a factory of tiny models."""

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import open_clip
import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file
from tiny import byte_level_tokenizer
from toy import RECORDS, TUNING, TUNING_CONFIGS, as_flags, train, write_json_file, write_mixture, write_pictures
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from instruction_dataset.store import CACHE_VARIABLE
from open_flamingo import Flamingo, create_model_and_transforms

# a job in a shell's background ignores Ctrl-C, and so would all that it starts, for which tests mean one
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")
torch.set_num_threads(1)  # tiny matrices: more threads only wait for each other, for minutes on a busy machine

WIDTH = 64


@pytest.fixture(scope="session", autouse=True)
def temporary_files() -> Iterator[None]:
    """Temporary files of the processes that tests start go where nothing stays; torchrun leaves its own, for one."""
    with (
        tempfile.TemporaryDirectory(prefix="tests-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this process and those it starts keep prepared data, away from the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Hugging Face folder of a random LLaMA of four layers with its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-lm")
    tokenizer = byte_level_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The open_clip config of a ViT that cuts 32-pixel images into 16 patches."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": WIDTH, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    }
    path = tmp_path_factory.mktemp("tiny-vision") / "tiny-test-vit.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="session")
def build_tiny(tiny_lm: Path, tiny_vision: Path) -> Callable[..., tuple[Flamingo, Callable, PreTrainedTokenizerBase]]:
    """A factory of tiny models with open gates, in evaluation mode."""

    def build(
        lm: Path | None = None, every: int = 1, gates: float = 0.5, seed: int = 0, **kwargs: Any
    ) -> tuple[Flamingo, Callable, PreTrainedTokenizerBase]:
        torch.manual_seed(seed)
        model, image_processor, tokenizer = create_model_and_transforms(
            str(tiny_vision), "none", str(lm or tiny_lm), cross_attn_every_n_layers=every, **kwargs
        )
        for block in model.gated_cross_attn_layers:
            torch.nn.init.constant_(block.attn_gate, gates)
            torch.nn.init.constant_(block.ff_gate, gates)
        return model.eval(), image_processor, tokenizer

    return build


@pytest.fixture(scope="session")
def tower(tiny_vision: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a vision tower with random weights that stay the same from build to build."""
    folder = tmp_path_factory.mktemp("tower")
    open_clip.add_model_config(tiny_vision)
    torch.manual_seed(0)
    clip = open_clip.create_model(tiny_vision.stem)
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": json.loads(tiny_vision.read_text())}))
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one picture of each colour."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    return folder


@pytest.fixture(scope="session")
def toy_data(pictures: Path) -> Path:
    """The dataset config of the toy task."""
    return write_mixture(pictures, colours=RECORDS)


@pytest.fixture(scope="session")
def toy_flags(tower: Path, tiny_lm: Path, toy_data: Path) -> list[str]:
    """The flags of a run of two steps an epoch, all but its name."""
    return as_flags(
        vision_encoder_path=tower,
        lm_path=tiny_lm,
        instruction_data=toy_data,
        tuning_config=TUNING_CONFIGS / "from_scratch-llama.json",
        cross_attn_every_n_layers=2,
        max_length=128,
        max_img=2,
        instruction_prompt_template="guanaco-no-prompt",
        train_num_samples=-1,
        batch_size=3,
        learning_rate=1e-3,
        warmup_steps=1,
        workers=0,
    )


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs that tests share."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def short_run(toy_flags: list[str], runs: Path) -> Path:
    """The folder of a run of two epochs of two steps, which other runs are compared with."""
    return train(toy_flags, run_name=runs / "short", num_epochs=2, lr_scheduler="cosine")


@pytest.fixture(scope="session")
def toy_run(toy_flags: list[str], runs: Path) -> Path:
    """The folder of a run that has learnt the toy task by heart."""
    return train(
        toy_flags,
        run_name=runs / "toy",
        tuning_config=write_json_file(runs / "tuning.json", TUNING),
        train_num_samples=240,
        multiturn_augmentation=0,
        batch_size=6,
        learning_rate=1e-2,
        lr_scheduler="cosine",
        logging_steps=10,
    )
