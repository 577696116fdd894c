"""The numbers recorded from the 2023 code, models that hold their weights, and a table of how far ours are from them."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from open_flamingo import Flamingo, create_model_and_transforms
from open_flamingo.src.flamingo_lm import FlamingoLayer

GOLDENS = Path(__file__).parents[1] / "goldens"
TOWERS = GOLDENS / "shared" / "open_clip"
NEW_TOKEN_ROWS = ".rows600_603"
FLOATS = {"rtol": 1e-4, "atol": 5e-5}


@dataclass
class Errors:
    """How far the tensors compared with one golden were from it."""

    tensors: int = 0
    absolute: float = 0.0
    """The largest difference of two elements."""
    relative: float = 0.0
    """The same as a share of the tensor's largest element."""

    def add(self, ours: Tensor, expected: Tensor) -> None:
        """Take in one tensor."""
        self.tensors += 1
        if expected.numel():
            error = (ours - expected).abs().max().item()
            self.absolute = max(self.absolute, error)
            self.relative = max(self.relative, error / max(expected.abs().max().item(), 1e-30))


ERRORS: defaultdict[str, Errors] = defaultdict(Errors)
"""By golden, in the order of the tests; the terminal summary prints it."""


def assert_recorded(golden: str, ours: Tensor, expected: Tensor, *, rtol: float, atol: float, name: str = "") -> None:
    """`torch.testing.assert_close`, and a line for `golden` in the table; `name` is the tensor's in a failure."""
    if ours.shape == expected.shape:
        ERRORS[golden].add(ours.detach(), expected)
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol, msg=lambda text: f"{golden} {name}: {text}")


def read_json(*parts: str) -> Any:
    """A recorded JSON file."""
    return json.loads(GOLDENS.joinpath(*parts).read_text())


def indexed(index: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
    """The tensors that an index of 2023 names points to."""
    files = {name: load_file(GOLDENS / name) for name in {entry["file"] for entry in index.values()}}
    return {key: files[entry["file"]][entry["tensor"]] for key, entry in index.items()}


def learnt_in_2023(ids: list[int], targets: list[bool], media_token_id: int, eoc_token_id: int) -> list[bool]:
    """Which targets had a loss in 2023: not `<image>`, nor what follows an `<|endofchunk|>` up to a target `<image>`.

    A rule from OpenFlamingo's web data. Our answers hold neither token, and the loss is chosen by position alone, so only
    recorded texts that spell these tokens out need it.
    """
    learnt, after_chunk = [], False
    for token, is_target in zip(ids, targets, strict=True):
        is_image = is_target and token == media_token_id
        after_chunk = after_chunk and not is_image
        learnt.append(is_target and not is_image and not after_chunk)
        after_chunk = after_chunk or (is_target and token == eoc_token_id)
    return learnt


@dataclass
class Recording:
    """What the 2023 code computed for one language model and interval, and our model with the same weights."""

    family: str
    every: int
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `create_model_and_transforms`."""

    @property
    def name(self) -> str:
        return f"{self.family}/n{self.every}"

    @property
    def lm(self) -> Path:
        return GOLDENS / self.family / "lm"

    def json(self, name: str) -> Any:
        return read_json(self.name, f"{name}.json")

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(GOLDENS / self.name / f"{name}.safetensors")

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The 2023 state dict, all its names for the same tensor included."""
        return indexed(self.json("state_dict_keys"))

    def fresh(self) -> Flamingo:
        """A model with random weights, those of the bare language model apart."""
        model, _, _ = create_model_and_transforms(
            str(TOWERS / "tiny-vit.json"), "none", str(self.lm), cross_attn_every_n_layers=self.every, **self.options
        )
        return model.eval()

    def build(self) -> Flamingo:
        """A model with the recorded weights."""
        model = self.fresh()
        model.load_state_dict({name: self.weights[name] for name in model.state_dict()})
        return model

    def random(self) -> Flamingo:
        """A model whose every parameter is random."""
        model = self.fresh()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        return model

    def pretrained(self, released: Iterable[str]) -> Flamingo:
        """A model with the recorded language model and tower; whatever `released` names, a tied name too, is random."""
        model = self.random()
        canonical = {key: entry["canonical"] for key, entry in self.json("state_dict_keys").items()}
        held = {canonical[key] for key in released}
        own = {key for key in model.state_dict() if canonical[key] not in held}
        model.load_state_dict({key: self.weights[key] for key in own}, strict=False)
        return model

    @cached_property
    def model(self) -> Flamingo:
        """A model with the recorded weights, for tests that do not change it."""
        return self.build()

    @cached_property
    def batch(self) -> dict[str, Tensor]:
        return self.tensors("forward")

    def forward(self, key: str = "lang_x", vision_x: Tensor | None = None) -> Tensor:
        """Logits without gradients for the recorded text `key`."""
        with torch.no_grad():
            return self.model(vision_x, self.batch[key]).logits


def attended_logits(model: Flamingo, batch: dict[str, Tensor]) -> Tensor:
    """Logits of a recorded batch at the tokens that are not padding."""
    with torch.no_grad():
        logits = model(batch["vision_x"], batch["lang_x"], batch["attention_mask"]).logits
    return logits[batch["attention_mask"].bool()]


def states_of_layers(model: Flamingo, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits, layer outputs and attention before its gate, under the recorded names."""
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


@dataclass
class AttentionRun:
    """What the first block's attention gave in one run of the decoder layers, before its gate."""

    rows: int
    length: int
    largest: float = 0.0
    """The largest absolute value of any token."""
    largest_at_end: float = 0.0
    """That of the last tokens of all rows."""


@contextmanager
def watched_attention(model: Flamingo) -> Iterator[list[AttentionRun]]:
    """A list that each run of the decoder layers inside the context adds to."""
    runs: list[AttentionRun] = []
    block = model.gated_cross_attn_layers[0]

    def start(_module, args):
        runs.append(AttentionRun(*args[0].shape[:2]))

    def finish(_module, args, output):
        run, largest = runs[-1], output.abs().amax(dim=-1)
        at_end = torch.isin(args[1].tokens, torch.arange(1, run.rows + 1) * run.length - 1)
        run.largest, run.largest_at_end = (max([0.0, *x.tolist()]) for x in (largest, largest[at_end]))

    handles = block.register_forward_pre_hook(start), block.attn.register_forward_hook(finish)
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


def loss_and_gradients(model: Flamingo, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, and the gradient of each parameter by name, for a recorded batch."""
    loss = model(batch["vision_x"], batch["lang_x"], batch["attention_mask"], labels=batch["labels"]).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients


def assert_gradient_norms(golden: str, gradients: dict[str, Tensor], expected: dict[str, float]) -> None:
    """The same parameters have gradients, with the same norms."""
    assert set(gradients) == set(expected)
    ours = torch.stack([gradients[name].norm() for name in expected])
    assert_recorded(golden, ours, torch.tensor(list(expected.values())), rtol=1e-4, atol=1e-8)
