"""The model against numbers recorded from the 2023 code: same weights and inputs, same outputs, gradients and ids."""

import pytest
import torch
from recordings import (
    FLOATS,
    GOLDENS,
    NEW_TOKEN_ROWS,
    TOWERS,
    Recording,
    assert_gradient_norms,
    assert_recorded,
    loss_and_gradients,
    states_of_layers,
    watched_attention,
)
from safetensors.torch import load_file
from torch import Tensor

from open_flamingo.src.helpers import PerceiverResampler
from open_flamingo.src.vision import create_vision_encoder, visual_tokens

CASES = [("opt", 1), ("opt", 2), ("llama", 1), ("mpt", 1), ("mpt", 2)]
IMAGES_OF_CACHED_PREFIX = 2

RECORDINGS = {f"{lm}-n{every}": Recording(lm, every) for lm, every in CASES}


def generated(recording: Recording) -> list[str]:
    """The recorded settings of generation, without those that force an `<image>` token, which we never generate."""
    settings = [name for name, value in recording.json("generate").items() if isinstance(value, dict)]
    return [name for name in settings if "forced" not in name]


@pytest.fixture(scope="module", params=RECORDINGS)
def recorded(request) -> Recording:
    return RECORDINGS[request.param]


@pytest.fixture(scope="module")
def trained(recorded) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, and the gradient of each parameter by name, for the recorded batch."""
    return loss_and_gradients(recorded.model, recorded.batch)


def test_our_parameter_names_are_all_among_the_recorded_ones(recorded):
    assert set(recorded.model.state_dict()) <= set(recorded.weights)


def test_what_trains_is_what_trained_in_2023(recorded):
    ours = {name for name, p in recorded.model.named_parameters() if p.requires_grad}
    assert ours == set(recorded.json("trainable_params")["trainable"])


def test_logits_attention_and_layer_outputs_equal_the_recorded_ones(recorded):
    attended = recorded.batch["attention_mask"].bool()
    states = states_of_layers(recorded.model, recorded.batch)
    names = {name for name in recorded.batch if name.startswith(("layer_out.", "xattn_attn_out."))} | {"logits"}
    assert set(states) == names
    for name in sorted(names):
        golden = f"{recorded.name} {name.partition('.')[0]}"
        assert_recorded(golden, states[name][attended], recorded.batch[name][attended], **FLOATS, name=name)


def test_loss_equals_the_recorded_one(recorded, trained):
    loss, _ = trained
    assert_recorded(f"{recorded.name} loss", loss[None], recorded.batch["loss"], **FLOATS)


def test_gradient_norms_equal_the_recorded_ones(recorded, trained):
    _, gradients = trained
    assert_gradient_norms(f"{recorded.name} gradient norms", gradients, recorded.json("grad_norms")["grad_norms"])


def test_gradients_equal_the_recorded_ones(recorded, trained):
    _, gradients = trained
    for name, expected in recorded.tensors("grads").items():
        ours = gradients[name.removesuffix(NEW_TOKEN_ROWS)]
        if name.endswith(NEW_TOKEN_ROWS):
            ours = ours[600:603]
        assert_recorded(f"{recorded.name} gradients", ours, expected, rtol=1e-4, atol=1e-6, name=name)


def test_text_after_cache_media_equals_the_recorded_one(recorded):
    images = recorded.batch["vision_x"][:1, :IMAGES_OF_CACHED_PREFIX]
    recorded.model.cache_media(recorded.batch["cached.prefix"], images)
    logits = recorded.forward("cached.lang_x")
    recorded.model.uncache_media()
    assert_recorded(f"{recorded.name} cached", logits, recorded.batch["cached.logits"], **FLOATS)


@pytest.mark.parametrize("with_images", [False, True])
def test_text_without_image_tokens_equals_the_recorded_one(recorded, with_images):
    images = recorded.batch["vision_x"][:1] if with_images else None
    logits = recorded.forward("edge_textonly.lang_x", images)
    assert_recorded(f"{recorded.name} text only", logits, recorded.batch["edge_textonly.logits"], **FLOATS)


def test_more_image_tokens_than_images_are_refused(recorded):
    with pytest.raises(ValueError, match="4 <image> tokens but only 3 images"):
        recorded.forward("edge_overflow.lang_x", recorded.batch["vision_x"][:1])


@pytest.mark.parametrize(
    ("recorded", "setting"),
    [(name, setting) for name, recording in RECORDINGS.items() for setting in generated(recording)],
    indirect=["recorded"],
)
def test_generated_ids_are_the_recorded_ones(recorded, setting):
    generate = recorded.json("generate")
    with watched_attention(recorded.model) as runs:
        ids = recorded.model.generate(
            recorded.tensors("generate")["vision_x"],
            torch.tensor(generate["input_ids"]),
            torch.tensor(generate["attention_mask"]),
            do_sample=False,
            pad_token_id=generate["hf_pad_token_id_used"],
            **generate[setting]["kwargs"],
        )
    assert ids.tolist() == generate[setting]["ids"]
    first_runs = generate[setting].get("first_xattn_shape_and_lastpos_absmax_per_step", [])
    for run, (rows, length, largest) in zip(runs, first_runs, strict=False):
        assert run.rows == rows
        assert run.length in (length, 1)  # MPT's generation had no KV cache in 2023
        ours = torch.tensor(run.largest_at_end)
        assert_recorded(f"{recorded.name} attention per step", ours, torch.tensor(largest), **FLOATS)


@pytest.mark.parametrize("config", ["tiny-vit", "tiny-vit-quickgelu"])
def test_visual_tokens_equal_the_recorded_ones(config):
    visual, _ = create_vision_encoder(str(TOWERS / f"{config}.json"), "none")
    weights = load_file(TOWERS / "tiny-vit.safetensors")
    visual.load_state_dict({k.removeprefix("visual."): v for k, v in weights.items() if k.startswith("visual.")})
    tokens = load_file(GOLDENS / "shared" / "vision_tokens.safetensors")
    ours = visual_tokens(visual, tokens["pixels"])
    assert_recorded(f"visual tokens of {config}", ours, tokens[f"{config}.tokens"], **FLOATS)


def test_resampler_output_equals_the_recorded_one():
    resampler = PerceiverResampler(dim=64)
    weights = load_file(GOLDENS / "shared" / "perceiver.safetensors")
    resampler.load_state_dict({k.removeprefix("perceiver."): v for k, v in weights.items()})
    io = load_file(GOLDENS / "shared" / "perceiver_io.safetensors")
    with torch.no_grad():
        assert_recorded("resampler", resampler(io["perceiver_in"]), io["perceiver_out"], **FLOATS)
