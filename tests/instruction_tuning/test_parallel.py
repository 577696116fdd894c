"""DDP and FSDP2, on two and on four ranks, train, save, continue and answer as one process does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks, torchrun_variables
from tiny import EXACT, IMAGES_OF_PROMPTS, PROMPTS, encode, random_images
from torch import Tensor, nn
from toy import TUNING

from open_flamingo import create_model_and_transforms
from open_flamingo.instruction_tuning.distributed import Ranks
from open_flamingo.instruction_tuning.optim import make_optimizer
from open_flamingo.instruction_tuning.parallel import (
    Sharding,
    device_mesh,
    distribute,
    load_optimizer_state,
    optimizer_state,
    unsynced,
    whole,
)
from open_flamingo.instruction_tuning.precision import autocast, cast_frozen
from open_flamingo.instruction_tuning.tuning import parse_tuning_config, prepare_model_for_tuning

STEPS = 3
"""Optimizer steps, each on two micro-batches; the state is saved before the last one."""
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""The same sums in another order, in steps of 1e-3."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Way:
    """One way to train the tiny model."""

    sharding: Sharding | None = None
    checkpointing: bool = False
    precision: str = "fp32"


WAYS = {
    "ddp": Way(),
    "full": Way("full", checkpointing=True),
    "hybrid": Way("hybrid"),
    "bf16": Way("full", precision="bf16", checkpointing=True),
}


def build(parts: tuple[str, str], way: Way) -> tuple[Any, Any]:
    """The tiny model, whose gates are open, and its tokenizer: the same on every rank."""
    torch.manual_seed(0)
    vision, lm = parts
    model, _, tokenizer = create_model_and_transforms(
        vision, "none", lm, cross_attn_every_n_layers=2, resampler_depth=2
    )
    for block in model.gated_cross_attn_layers:
        nn.init.constant_(block.attn_gate, 0.5)
        nn.init.constant_(block.ff_gate, 0.5)
    prepare_model_for_tuning(model, parse_tuning_config(TUNING), freeze_lm_embeddings=False)
    cast_frozen(model, way.precision)
    if way.checkpointing:
        model.gradient_checkpointing_enable()
    return model.train(), tokenizer


class Run:
    """A small training loop around the tiny model."""

    def __init__(self, ranks: Ranks, parts: tuple[str, str], way: Way, saved: dict[str, Any] | None = None) -> None:
        """Start anew, or from what `save` returned."""
        self.ranks, self.way = ranks, way
        self.model, self.tokenizer = build(parts, way)
        self.names = [name for name, _ in self.model.named_parameters()]
        if saved:
            self.model.load_state_dict(saved["weights"], strict=False)
        self.wrapped = distribute(self.model, ranks, way.sharding)
        self.optimizer = make_optimizer(
            self.model.named_parameters(), learning_rate=1e-3, weight_decay=0.1, learning_rates={}
        )
        for group in self.optimizer.param_groups:
            group["eps"] = 1e-4  # else a gradient of rounding errors alone makes a whole step
        if saved:
            load_optimizer_state(self.optimizer, saved["optimizer"])

    def save(self) -> dict[str, Any]:
        """The trained weights and the optimizer's state, whole."""
        trained = {n: whole(p.detach()).clone() for n, p in self.model.named_parameters() if p.requires_grad}
        state = optimizer_state(self.optimizer)
        copies = {i: {k: v.clone() for k, v in entry.items()} for i, entry in state["state"].items()}
        return {"weights": trained, "optimizer": state | {"state": copies}}

    def step(self, number: int) -> tuple[float, float]:
        """One optimizer step: the loss over all ranks and the norm of the gradients."""
        with unsynced(self.wrapped):
            first = self.backward(2 * number)
        total = first + self.backward(2 * number + 1)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = whole(nn.utils.clip_grad_norm_(parameters, 1.0))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.ranks.sum(total).item(), norm.item()

    def backward(self, number: int) -> Tensor:
        """The loss of this rank's part of PROMPTS, with images of its own for each `number`."""
        everything = encode(self.tokenizer, *PROMPTS)
        mine = slice(*(r * len(PROMPTS) // self.ranks.world_size for r in (self.ranks.rank, self.ranks.rank + 1)))
        ids, mask = everything["lang_x"][mine], everything["attention_mask"][mine]
        slots = random_images(len(PROMPTS), 3, seed=number)[mine]
        images = torch.cat([row[:count] for row, count in zip(slots, IMAGES_OF_PROMPTS[mine], strict=True)])
        with autocast(CPU, self.way.precision):
            loss = self.wrapped(images, ids, mask, supervised=mask.bool()).total
        loss = loss / (2 * everything["attention_mask"][:, 1:].sum())
        (loss * self.ranks.world_size).backward()
        return loss.detach()

    def answer(self, i: int) -> list[int]:
        """What the model generates after prompt `i`: more tokens for each next prompt."""
        images = random_images(1, 3, seed=i)[0, : IMAGES_OF_PROMPTS[i]]
        text = encode(self.tokenizer, PROMPTS[i])
        ids = self.model.generate(
            images, **text, max_new_tokens=3 + 2 * i, num_beams=2, eos_token_id=None, pad_token_id=0
        )
        return ids[0, text["lang_x"].shape[1] :].tolist()


def train(ranks: Ranks, parts: tuple[str, str], way: Way) -> dict[str, Any]:
    """Train, save before the last step, and take that step once more in a new run that continues from there."""
    run = Run(ranks, parts, way)
    logged = [run.step(number) for number in range(STEPS - 1)]
    saved = run.save()
    logged.append(run.step(STEPS - 1))
    names = [name for name, _ in run.model.named_parameters()]
    assert names == run.names
    continued = Run(ranks, parts, way, saved)
    continued.step(STEPS - 1)
    return {"logged": logged, "saved": saved, "end": run.save(), "continued": continued.save()}


def study(ranks: Ranks, parts: tuple[str, str], names: list[str]) -> dict[str, Any]:
    """All that is compared, in one set of processes."""
    results: dict[str, Any] = {name: train(ranks, parts, WAYS[name]) for name in names}
    run = Run(ranks, parts, WAYS["full"], results["ddp"]["end"])
    results["carried"] = run.save()
    run.model.eval()
    mine = range(len(PROMPTS)) if ranks.world_size == 1 else [ranks.rank]
    results["answers"] = [run.answer(i) for i in mine]
    run.model.train()
    results["after answers"] = run.step(STEPS)
    return results


@pytest.fixture(scope="module")
def studies(tiny_lm, tiny_vision, tmp_path_factory) -> dict[int, list[dict[str, Any]]]:
    """For 1, 2 and 4 ranks, the results of each rank; four ranks are two nodes."""
    parts = (str(tiny_vision), str(tiny_lm))
    names = {1: ["ddp", "bf16"], 2: ["ddp", "full"], 4: list(WAYS)}
    folder: Path = tmp_path_factory.mktemp("studies")
    return {
        world: on_ranks(torchrun_variables(world, min(world, 2)), folder / str(world), study, parts, names[world])
        for world in names
    }


MANY = [(2, "ddp"), (2, "full"), (4, "ddp"), (4, "full"), (4, "hybrid")]


@pytest.mark.parametrize(("world", "way"), MANY)
def test_many_ranks_train_what_one_rank_trains(studies, world, way):
    one, many = studies[1][0]["ddp"], studies[world][0][way]
    torch.testing.assert_close(torch.tensor(many["logged"]), torch.tensor(one["logged"]), rtol=1e-5, atol=0)
    torch.testing.assert_close(many["end"]["weights"], one["end"]["weights"], **CLOSE)


def test_many_ranks_train_beside_frozen_weights_in_bf16(studies):
    one, many = studies[1][0]["bf16"]["logged"], studies[4][0]["bf16"]["logged"]
    torch.testing.assert_close(torch.tensor(many), torch.tensor(one), rtol=1e-2, atol=0)


@pytest.mark.parametrize(("world", "way"), MANY)
def test_all_ranks_end_with_the_same_weights_and_state(studies, world, way):
    for other in studies[world][1:]:
        torch.testing.assert_close(other[way]["end"], studies[world][0][way]["end"], **EXACT)


@pytest.mark.parametrize(("world", "way"), MANY)
def test_a_run_that_is_continued_ends_bit_equal_to_one_that_was_not_stopped(studies, world, way):
    result = studies[world][0][way]
    torch.testing.assert_close(result["continued"], result["end"], **EXACT)


@pytest.mark.parametrize("world", [2, 4])
def test_weights_and_state_pass_from_ddp_through_shards_to_one_process_unchanged(studies, tiny_lm, tiny_vision, world):
    saved, carried = studies[world][0]["ddp"]["end"], studies[world][0]["carried"]
    torch.testing.assert_close(carried, saved, **EXACT)
    alone = Run(Ranks(0, 1, CPU), (str(tiny_vision), str(tiny_lm)), Way(), carried)
    torch.testing.assert_close(alone.save(), saved, **EXACT)


@pytest.mark.parametrize("world", [2, 4])
def test_each_rank_of_a_sharded_model_generates_what_a_whole_model_generates(studies, world):
    expected = studies[1][0]["answers"]
    assert [len(answer) for answer in expected] == [3, 5, 7, 9]
    assert [rank["answers"] for rank in studies[world]] == [[answer] for answer in expected[:world]]


@pytest.mark.parametrize("world", [2, 4])
def test_training_goes_on_after_generation(studies, world):
    assert studies[world][0]["after answers"] == pytest.approx(studies[1][0]["after answers"], rel=1e-5)


def test_one_rank_has_nothing_to_shard(build_tiny):
    model, _, _ = build_tiny()
    assert distribute(model, Ranks(0, 1, CPU), "full") is model
    with unsynced(model):
        assert all(whole(p) is p for p in model.parameters())


def adam(*shapes: tuple[int, ...]) -> torch.optim.AdamW:
    """AdamW after a step on one group of parameters."""
    parameters = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW(parameters)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ([(2, 3)], r"\[2\] parameters in its groups, but \[1\] train"),
        ([(2, 3), (5,)], r"of shape \(4,\), but \(5,\) trains"),
    ],
)
def test_the_state_of_other_parameters_is_refused(shapes, said):
    with pytest.raises(ValueError, match=said):
        load_optimizer_state(adam(*shapes), optimizer_state(adam((2, 3), (4,))))


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        (Ranks(0, 2, torch.device("mps")), "not MPS"),
        (Ranks(0, 3, CPU, node_size=2), "3 ranks do not fill nodes of 2"),
    ],
)
def test_ranks_that_cannot_shard_are_refused(ranks, said):
    with pytest.raises(ValueError, match=said):
        device_mesh(ranks, "hybrid")
