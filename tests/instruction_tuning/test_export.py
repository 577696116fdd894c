"""An exported folder is the model it came from, wherever it lies, and holds no pickles."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import EXACT, FLOATS, random_images
from torch import Tensor
from toy import ROOT, weights
from transformers import AutoModelForCausalLM

from open_flamingo import Flamingo, load, load_checkpoints
from open_flamingo.instruction_tuning import export
from open_flamingo.instruction_tuning.data.images import load_image
from open_flamingo.instruction_tuning.data.prompts import format_prompt
from open_flamingo.instruction_tuning.inferencer import Inferencer

PROMPT = format_prompt("<image><image>Which colour?", "guanaco-no-prompt")
GREEDY = {"do_sample": False, "num_beams": 1, "max_new_token": 24, "no_repeat_ngram_size": 0}


@torch.no_grad()
def logits(model: Flamingo) -> Tensor:
    ids = torch.tensor([[5, model.media_token_id, 20, 30, model.media_token_id, 40, 50]])
    return model(random_images(1, 2), ids).logits


@pytest.fixture(scope="module")
def exported(toy_run, runs) -> Path:
    """The folder of the toy run, made by the command and then moved."""
    export.main([f"--checkpoint_paths={toy_run / 'checkpoint_0.pt'}", f"--output_dir={runs / 'exported'}"])
    return shutil.move(runs / "exported", runs / "moved")


def test_the_folder_gives_the_logits_of_the_checkpoint(exported, toy_run):
    expected, merged = (load(str(path))[0] for path in (toy_run / "checkpoint_0.pt", exported))
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits(merged), logits(expected), **FLOATS)


def test_the_folder_answers_alone_and_in_its_template(exported, pictures):
    inferencer = Inferencer(str(exported))
    assert inferencer.template == "guanaco-no-prompt"
    images = [str(pictures / f"{color}.png") for color in ("red", "blue")]
    assert inferencer(PROMPT, images, **GREEDY)[0] == ["red blue"]


def test_an_export_of_an_export_gives_the_same_logits_to_the_bit(exported, tmp_path):
    export.main([f"--checkpoint_paths={exported}", f"--output_dir={tmp_path / 'again'}"])
    torch.testing.assert_close(logits(load(str(tmp_path / "again"))[0]), logits(load(str(exported))[0]), **EXACT)


def test_image_transform_and_tokenizer_are_those_of_the_checkpoint(exported, toy_run, pictures):
    (_, transform, tokenizer), (_, expected_transform, expected) = (
        load(str(path)) for path in (exported, toy_run / "checkpoint_0.pt")
    )
    picture = pictures / "red.png"
    torch.testing.assert_close(load_image(picture, transform), load_image(picture, expected_transform), **EXACT)
    assert tokenizer.get_vocab() == expected.get_vocab()
    assert tokenizer.special_tokens_map == expected.special_tokens_map


def test_the_language_model_is_a_hugging_face_folder_with_its_adapters_merged(exported, tiny_lm):
    ours, base = (AutoModelForCausalLM.from_pretrained(path) for path in (exported / "language_model", tiny_lm))
    names = {name for name, _ in base.named_parameters()}
    assert {name for name, _ in ours.named_parameters()} == names
    changed = {n for n in names if not torch.equal(ours.get_parameter(n)[:100], base.get_parameter(n)[:100])}
    assert {name.split(".")[-2] for name in changed} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


def test_no_file_of_the_folder_is_a_pickle(exported):
    kinds = {path.suffix for path in exported.rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"}


def test_an_export_is_the_same_whatever_lies_in_the_current_folder(exported, toy_run, tmp_path, monkeypatch):
    for name in ("language_model", "vision_encoder", "none", "previous"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    export.main([f"--checkpoint_paths={toy_run / 'checkpoint_0.pt'}", "--output_dir=again"])
    assert (tmp_path / "again" / "config.json").read_text() == (exported / "config.json").read_text()
    torch.testing.assert_close(logits(load("again")[0]), logits(load(str(exported))[0]), **EXACT)


def test_what_was_trained_on_is_recorded(exported):
    config = json.loads((exported / "config.json").read_text())
    assert config["visual_tokens"] == "last block, before the final norm, without class token"
    assert config["model"]["quick_gelu"] is False


def test_a_folder_of_other_visual_tokens_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"visual_tokens": "after the final norm"}))
    with pytest.raises(ValueError, match="other visual tokens: after the final norm"):
        load(str(folder))


def test_a_folder_in_the_way_is_refused_and_kept(exported, toy_run):
    before = sorted(exported.rglob("*"))
    with pytest.raises(ValueError, match="exists already"):
        export.main([f"--checkpoint_paths={toy_run / 'checkpoint_0.pt'}", f"--output_dir={exported}"])
    assert sorted(exported.rglob("*")) == before


def test_an_exported_folder_is_not_put_on_another_model(exported, build_tiny):
    with pytest.raises(ValueError, match=r"is a folder: an exported model is loaded whole, by open_flamingo\.load"):
        load_checkpoints(build_tiny()[0], str(exported))


def test_the_command_says_what_it_did_and_ends_well(toy_run, tmp_path):
    command = [sys.executable, "-m", "open_flamingo.instruction_tuning.export", "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--checkpoint_paths", str(toy_run / "checkpoint_0.pt")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert f"exported to {tmp_path / 'out'}" in done.stdout + done.stderr
    again = subprocess.run(
        [*command, "--checkpoint_paths", str(tmp_path / "nowhere.pt")], cwd=ROOT, capture_output=True, text=True
    )
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.strip().splitlines()[-1].startswith(f"error: {tmp_path / 'out'} exists already")


def test_lora_is_found_in_a_file_of_weights_alone(toy_run, tiny_lm, tower, tmp_path):
    torch.save(weights(toy_run), tmp_path / "weights.pt")
    inferencer = Inferencer(
        str(tmp_path / "weights.pt"), str(tiny_lm), None, str(tower), cross_attn_every_n_layers=2, device="cpu"
    )
    told = Inferencer(str(toy_run / "checkpoint_0.pt"), device="cpu")
    torch.testing.assert_close(logits(inferencer.model), logits(told.model), **EXACT)
