"""Checkpoints as the 2023 code wrote them load under every name they use, and give the recorded logits."""

import pytest
import torch
from recordings import FLOATS, GOLDENS, Recording, assert_recorded, attended_logits
from safetensors.torch import load_file, save_file
from torch import Tensor

from open_flamingo import Flamingo
from open_flamingo.instruction_tuning.checkpoint import load_checkpoints, state_to_save

CASES = [("opt", 1), ("opt", 2), ("llama", 1), ("mpt", 1), ("mpt", 2)]
RECORDINGS = {f"{lm}-n{every}": Recording(lm, every) for lm, every in CASES}
SAVED = {".pt": torch.save, ".safetensors": save_file}
RELEASED = "released_ckpt_keys"
FROZEN_EMBEDDINGS = "released_ckpt_keys_freeze_lm_embeddings"
TRAINED = GOLDENS / "opt" / "train_default_n2"
DUPLICATED = ("lang_encoder.old_decoder_blocks.", "lang_encoder.gated_cross_attn_layers.")
"""Where the 2023 code registered decoder layers and blocks a second time."""
NOT_TRAINED = ["lang_encoder.lm_head.weight", "lang_encoder.model.decoder.embed_positions.weight"]
"""Recorded keys that we do not write: the output head, which is the input embedding, and OPT's frozen positions.

The 2023 code removed frozen parameters by name from the state dict: it missed what has two names, or `embed` in one.
"""


@pytest.fixture(scope="module", params=RECORDINGS)
def recorded(request) -> Recording:
    return RECORDINGS[request.param]


def assert_gives_recorded_logits(recorded: Recording, model: Flamingo, golden: str) -> None:
    attended = recorded.batch["attention_mask"].bool()
    ours = attended_logits(model, recorded.batch)
    assert_recorded(f"{recorded.name} {golden}", ours, recorded.batch["logits"][attended], **FLOATS)


@pytest.mark.parametrize("suffix", SAVED)
@pytest.mark.parametrize("keys", [RELEASED, FROZEN_EMBEDDINGS])
def test_a_file_in_the_released_layout_gives_the_recorded_logits(recorded, keys, suffix, tmp_path):
    released = list(recorded.json(keys))
    model = recorded.pretrained(released)
    # safetensors refuses tensors that share memory, as tied ones do
    state = {key: recorded.weights[key].clone() for key in released}
    SAVED[suffix](state, tmp_path / f"released{suffix}")
    load_checkpoints(model, str(tmp_path / f"released{suffix}"))
    assert_gives_recorded_logits(recorded, model, "released layout")


def test_the_released_layout_is_what_we_write_and_tied_or_frozen_embeddings(recorded):
    ours = set(state_to_save(recorded.model))
    released = set(recorded.json(RELEASED))
    # LLaMA's head is not tied: its rows for the new tokens were never saved in 2023, and a reload needs them
    added = {"lang_encoder.lm_head.weight"} if recorded.family == "llama" else set()
    assert ours - released == added
    assert sorted(released - ours) == [key for key in NOT_TRAINED if key in released]


def test_the_whole_state_dict_of_2023_with_all_its_duplicates_gives_the_recorded_logits(recorded, tmp_path):
    model = recorded.random()
    torch.save(recorded.weights, tmp_path / "whole.pt")
    load_checkpoints(model, str(tmp_path / "whole.pt"))
    assert_gives_recorded_logits(recorded, model, "whole state dict")


def under_second_names(recorded: Recording) -> dict[str, Tensor]:
    """The whole state dict without the first names of decoder layers and blocks."""
    canonical = {key: entry["canonical"] for key, entry in recorded.json("state_dict_keys").items()}
    twice = {canonical[key] for key in canonical if key.startswith(DUPLICATED)}
    first = {key for key in canonical if canonical[key] in twice and not key.startswith(DUPLICATED)}
    assert first
    return {key: value for key, value in recorded.weights.items() if key not in first}


def test_layers_and_blocks_load_under_their_second_names_alone(recorded, tmp_path):
    model = recorded.random()
    torch.save(under_second_names(recorded), tmp_path / "second.pt")
    load_checkpoints(model, str(tmp_path / "second.pt"))
    assert_gives_recorded_logits(recorded, model, "second names")


def test_a_training_checkpoint_of_2023_gives_the_recorded_logits():
    recorded = RECORDINGS["opt-n2"]
    model = recorded.pretrained(recorded.json(RELEASED))
    load_checkpoints(model, str(TRAINED / "checkpoint_0.pt"))
    attended = recorded.batch["attention_mask"].bool()
    expected = load_file(TRAINED / "checkpoint_0_logits.safetensors")["logits"][attended]
    assert_recorded(
        "opt/train_default_n2/checkpoint_0 logits", attended_logits(model, recorded.batch), expected, **FLOATS
    )
