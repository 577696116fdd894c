"""The model against numbers recorded from the 2023 code: same weights and inputs, same outputs, gradients and ids."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from open_flamingo import Flamingo, create_model_and_transforms
from open_flamingo.src.flamingo_lm import FlamingoLayer
from open_flamingo.src.helpers import PerceiverResampler
from open_flamingo.src.vision import create_vision_encoder, visual_tokens

GOLDENS = Path(__file__).parents[1] / "goldens"
TOWERS = GOLDENS / "shared" / "open_clip"
CASES = [("opt", 1), ("opt", 2), ("llama", 1), ("mpt", 1), ("mpt", 2)]
IMAGES_OF_CACHED_PREFIX = 2
NEW_TOKEN_ROWS = ".rows600_603"
FLOATS = {"rtol": 1e-4, "atol": 5e-5}


@dataclass
class Recording:
    """What the 2023 code computed for one language model and interval, and our model with the same weights."""

    lm: Path
    every: int

    @property
    def folder(self) -> Path:
        return self.lm / f"n{self.every}"

    def json(self, name: str) -> dict:
        return json.loads((self.folder / f"{name}.json").read_text())

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The 2023 state dict, all its names for the same tensor included."""
        index = self.json("state_dict_keys")
        files = {name: load_file(GOLDENS / name) for name in {entry["file"] for entry in index.values()}}
        return {key: files[entry["file"]][entry["tensor"]] for key, entry in index.items()}

    @cached_property
    def model(self) -> Flamingo:
        model, _, _ = create_model_and_transforms(
            str(TOWERS / "tiny-vit.json"), "none", str(self.lm / "lm"), cross_attn_every_n_layers=self.every
        )
        model.load_state_dict({name: self.weights[name] for name in model.state_dict()})
        return model.eval()

    @cached_property
    def batch(self) -> dict[str, Tensor]:
        return self.tensors("forward")

    def forward(self, key: str = "lang_x", vision_x: Tensor | None = None) -> Tensor:
        """Logits without gradients for the recorded text `key`."""
        with torch.no_grad():
            return self.model(vision_x, self.batch[key]).logits


RECORDINGS = {f"{lm}-n{every}": Recording(GOLDENS / lm, every) for lm, every in CASES}


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
    batch, model = recorded.batch, recorded.model
    loss = model(batch["vision_x"], batch["lang_x"], batch["attention_mask"], labels=batch["labels"]).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients


def states_of_layers(recording: Recording) -> dict[str, Tensor]:
    """Logits, layer outputs and attention before its gate, under the recorded names."""
    model, batch = recording.model, recording.batch
    states, handles = {}, []
    layers = [m for m in model.modules() if isinstance(m, FlamingoLayer)]
    for i, layer in enumerate(layers):

        def keep_layer(_module, _args, output, name=f"layer_out.{i}"):
            states[name] = output[0] if isinstance(output, tuple) else output

        def keep_attention(_module, args, output, name=f"xattn_attn_out.{i}"):
            _, media = args
            b, t = batch["lang_x"].shape
            states[name] = output.new_zeros(b * t, output.shape[-1]).index_copy(0, media.tokens, output).view(b, t, -1)

        handles.append(layer.register_forward_hook(keep_layer))
        if layer.gated_cross_attn_layer is not None:
            handles.append(layer.gated_cross_attn_layer.attn.register_forward_hook(keep_attention))
    with torch.no_grad():
        states["logits"] = model(batch["vision_x"], batch["lang_x"], batch["attention_mask"]).logits
    for handle in handles:
        handle.remove()
    return states


def test_our_parameter_names_are_all_among_the_recorded_ones(recorded):
    assert set(recorded.model.state_dict()) <= set(recorded.weights)


def test_what_trains_is_what_trained_in_2023(recorded):
    ours = {name for name, p in recorded.model.named_parameters() if p.requires_grad}
    assert ours == set(recorded.json("trainable_params")["trainable"])


def test_logits_attention_and_layer_outputs_equal_the_recorded_ones(recorded):
    attended = recorded.batch["attention_mask"].bool()
    states = states_of_layers(recorded)
    names = {name for name in recorded.batch if name.startswith(("layer_out.", "xattn_attn_out."))} | {"logits"}
    assert set(states) == names
    for name in sorted(names):
        torch.testing.assert_close(
            states[name][attended],
            recorded.batch[name][attended],
            **FLOATS,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_loss_equals_the_recorded_one(recorded, trained):
    loss, _ = trained
    torch.testing.assert_close(loss[None], recorded.batch["loss"], **FLOATS)


def test_gradient_norms_equal_the_recorded_ones(recorded, trained):
    _, gradients = trained
    norms = recorded.json("grad_norms")["grad_norms"]
    assert set(gradients) == set(norms)
    ours = torch.stack([gradients[name].norm() for name in norms])
    torch.testing.assert_close(ours, torch.tensor(list(norms.values())), rtol=1e-4, atol=1e-8)


def test_gradients_equal_the_recorded_ones(recorded, trained):
    _, gradients = trained
    for name, expected in recorded.tensors("grads").items():
        ours = gradients[name.removesuffix(NEW_TOKEN_ROWS)]
        if name.endswith(NEW_TOKEN_ROWS):
            ours = ours[600:603]
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_text_after_cache_media_equals_the_recorded_one(recorded):
    images = recorded.batch["vision_x"][:1, :IMAGES_OF_CACHED_PREFIX]
    recorded.model.cache_media(recorded.batch["cached.prefix"], images)
    logits = recorded.forward("cached.lang_x")
    recorded.model.uncache_media()
    torch.testing.assert_close(logits, recorded.batch["cached.logits"], **FLOATS)


@pytest.mark.parametrize("with_images", [False, True])
def test_text_without_image_tokens_equals_the_recorded_one(recorded, with_images):
    images = recorded.batch["vision_x"][:1] if with_images else None
    logits = recorded.forward("edge_textonly.lang_x", images)
    torch.testing.assert_close(logits, recorded.batch["edge_textonly.logits"], **FLOATS)


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
    ids = recorded.model.generate(
        recorded.tensors("generate")["vision_x"],
        torch.tensor(generate["input_ids"]),
        torch.tensor(generate["attention_mask"]),
        do_sample=False,
        pad_token_id=generate["hf_pad_token_id_used"],
        **generate[setting]["kwargs"],
    )
    assert ids.tolist() == generate[setting]["ids"]


@pytest.mark.parametrize("config", ["tiny-vit", "tiny-vit-quickgelu"])
def test_visual_tokens_equal_the_recorded_ones(config):
    visual, _ = create_vision_encoder(str(TOWERS / f"{config}.json"), "none")
    weights = load_file(TOWERS / "tiny-vit.safetensors")
    visual.load_state_dict({k.removeprefix("visual."): v for k, v in weights.items() if k.startswith("visual.")})
    tokens = load_file(GOLDENS / "shared" / "vision_tokens.safetensors")
    torch.testing.assert_close(visual_tokens(visual, tokens["pixels"]), tokens[f"{config}.tokens"], **FLOATS)


def test_resampler_output_equals_the_recorded_one():
    resampler = PerceiverResampler(dim=64)
    weights = load_file(GOLDENS / "shared" / "perceiver.safetensors")
    resampler.load_state_dict({k.removeprefix("perceiver."): v for k, v in weights.items()})
    io = load_file(GOLDENS / "shared" / "perceiver_io.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(resampler(io["perceiver_in"]), io["perceiver_out"], **FLOATS)
