"""ALiBi and its shared mask; MPT of transformers with fused attention equals the library's own."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial

import pytest
import torch
from tiny import random_images
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, MptConfig, MptForCausalLM
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from open_flamingo import Flamingo
from open_flamingo.src.alibi import SharedMask, additive_mask, slopes
from open_flamingo.src.attention import LONG
from open_flamingo.src.mpt import use_sdpa
from open_flamingo.src.vision import create_vision_encoder, visual_width

VOCABULARY, END_OF_CHUNK_ID, IMAGE_ID = 96, 94, 95
SIDES = ["none", "left", "right"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""Logits, of a standard deviation of about 0.1."""


def random_mpt(heads: int = 4, max_seq_len: int = 64, **attention) -> MptForCausalLM:
    """A random MPT of two layers that attends eagerly, with scores large enough to matter."""
    torch.manual_seed(0)
    config = MptConfig(
        d_model=8 * heads,
        n_layers=2,
        n_heads=heads,
        max_seq_len=max_seq_len,
        vocab_size=VOCABULARY,
        attn_config=attention,
    )
    model = MptForCausalLM(config).eval()
    for block in model.transformer.blocks:
        nn.init.normal_(block.attn.Wqkv.weight, std=0.3)
        nn.init.normal_(block.attn.out_proj.weight, std=0.3)
    return model


def fused(model: nn.Module) -> nn.Module:
    """A copy of `model` with fused attention."""
    model = deepcopy(model)
    use_sdpa(model)
    return model


def batch(side: str, length: int = 21) -> dict[str, Tensor]:
    """Two texts, the second one shorter where they are padded at a side."""
    ids = torch.randint(END_OF_CHUNK_ID, (2, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if side != "none":
        mask[1, slice(0, 6) if side == "left" else slice(-6, None)] = 0
    return {"input_ids": ids, "attention_mask": mask}


def attended_logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Logits of the tokens that are no padding (m, vocabulary)."""
    with torch.no_grad():
        return model(**inputs).logits[inputs["attention_mask"].bool()]


def targets(inputs: dict[str, Tensor]) -> Tensor:
    """Labels (b, t) of all tokens that follow a token: padding predicts nothing."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    follows = mask * mask.roll(1, dims=1)
    follows[:, 0] = 0
    return ids.masked_fill(follows == 0, -100)


def gradients(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of the loss of predicting the text, by name of the parameter."""
    model.train()
    model(**inputs, labels=targets(inputs)).loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def masks_kept_for_backward(model: nn.Module, inputs: dict[str, Tensor], shape: tuple[int, ...]) -> list[Tensor]:
    """Every tensor of `shape` that the forward pass keeps, as often as it is kept."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**inputs)
    return [tensor for tensor in kept if tensor.shape == shape]


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (4, [1 / 4, 1 / 16, 1 / 64, 1 / 256]),
        # eight slopes 1/2 ... 1/256: every second one from the second on, then those between from the first on
        (6, [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]),
        (12, [2**-e for e in (1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5)]),
        (16, [2 ** (-i / 2) for i in range(1, 17)]),
        (32, [2 ** (-i / 4) for i in range(1, 33)]),
    ],
)
def test_slopes_are_those_worked_out_by_hand(heads, expected):
    torch.testing.assert_close(slopes(heads), torch.tensor(expected))


@pytest.mark.parametrize("heads", [4, 6, 12, 16, 32])
@pytest.mark.parametrize("bias_max", [8, 16])
def test_slopes_are_those_of_transformers(heads, bias_max):
    nearest_but_one = build_mpt_alibi_tensor(heads, 2, bias_max)[:, 0, 0]
    torch.testing.assert_close(slopes(heads, bias_max), -nearest_but_one)


def test_the_bias_of_a_key_is_its_distance_times_the_slope_and_cached_keys_count():
    unseen = torch.ones(1, 1, 2, 5, dtype=torch.bool).triu(4)
    lowest = torch.finfo(torch.float32).min
    expected = [[-1.5, -1.0, -0.5, 0.0, lowest], [-2.0, -1.5, -1.0, -0.5, 0.0]]
    mask = additive_mask(torch.tensor([0.5, 0.25]), unseen, torch.float32)
    torch.testing.assert_close(mask[0, 0], torch.tensor(expected), rtol=0, atol=0)
    torch.testing.assert_close(mask[0, 1, 1], torch.tensor(expected[1]) / 2, rtol=0, atol=0)


def test_half_precision_tells_near_keys_apart_however_long_the_text_is():
    unseen = torch.ones(1, 1, 1, 4000, dtype=torch.bool).triu(4000)
    mask = additive_mask(slopes(4), unseen, torch.bfloat16)
    distance = torch.arange(255, -1, -1.0)
    torch.testing.assert_close(mask[0, :, 0, -256:].float(), -slopes(4)[:, None] * distance, rtol=0, atol=0)


def test_rows_of_the_mask_are_aligned_for_the_kernel_of_cuda():
    unseen = torch.zeros(2, 1, 5, 21, dtype=torch.bool)
    mask = additive_mask(slopes(3), unseen, torch.bfloat16)
    assert mask.shape == (2, 3, 5, 21)
    assert [stride % 16 for stride in mask.stride()] == [0, 0, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_query_that_sees_nothing_gives_numbers_forward_and_backward(dtype):
    unseen = torch.ones(1, 1, 6, 6, dtype=torch.bool).triu(1)
    unseen[..., :3] = True
    q, k, v = (10 * torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    mask = SharedMask(4, 8).get(unseen, dtype)
    out = nn.functional.scaled_dot_product_attention(*leaves, attn_mask=mask)
    out.square().sum().backward()
    assert all(x.isfinite().all() for x in (out, *(leaf.grad for leaf in leaves)))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"heads": 6},
        {"clip_qkv": 0.5},
        {"softmax_scale": 0.1},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_logits_equal_those_of_eager_attention(side, settings):
    eager = random_mpt(**settings)
    torch.testing.assert_close(attended_logits(fused(eager), batch(side)), attended_logits(eager, batch(side)), **CLOSE)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["kept", "recomputed", "recomputed-reentrant"])
def test_gradients_equal_those_of_eager_attention(side, checkpointing):
    eager = random_mpt()
    expected = gradients(eager, batch(side))
    model = fused(eager)
    if checkpointing is not None:
        model.activation_checkpointing_enable({"use_reentrant": checkpointing})
    actual = gradients(model, batch(side))
    assert set(actual) == set(expected)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], **CLOSE)


@pytest.mark.parametrize("side", ["none", "left"])
def test_steps_with_a_cache_equal_those_of_eager_attention(side):
    eager, inputs = random_mpt(), batch(side)
    expected = attended_logits(eager, inputs)
    model, cache, steps = fused(eager), DynamicCache(), []
    for start, end in [(0, 9), (9, 10), (10, 14), (14, 21)]:
        with torch.no_grad():
            out = model(inputs["input_ids"][:, start:end], cache, inputs["attention_mask"][:, :end], use_cache=True)
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1)[inputs["attention_mask"].bool()], expected, **CLOSE)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generated_ids_equal_those_of_eager_attention(settings, use_cache):
    eager = random_mpt()
    settings = {"max_new_tokens": 8, "no_repeat_ngram_size": 1, "pad_token_id": 0, "use_cache": use_cache, **settings}
    expected = eager.generate(**batch("left"), **settings)
    assert fused(eager).generate(**batch("left"), **settings).tolist() == expected.tolist()


def test_dropout_of_attention_weights_is_that_of_eager_attention():
    eager = random_mpt()
    for block in eager.transformer.blocks:
        block.attn.attn_dropout_p = 0.4
    outputs = []
    for model in (eager.train(), fused(eager)):
        torch.manual_seed(3)
        outputs.append(attended_logits(model, batch("none")))
    torch.testing.assert_close(outputs[1], outputs[0], **CLOSE)
    assert not torch.allclose(outputs[0], attended_logits(eager.eval(), batch("none")), atol=1e-2)


def test_texts_may_be_longer_than_the_longest_of_training():
    long = batch("left", length=40)
    expected = attended_logits(random_mpt(max_seq_len=64), long)
    torch.testing.assert_close(attended_logits(fused(random_mpt(max_seq_len=16)), long), expected, **CLOSE)


def test_slopes_follow_the_config_which_the_library_ignores():
    eager = random_mpt(alibi_bias_max=16)
    as_configured = deepcopy(eager)
    as_configured.transformer.build_mpt_alibi_tensor = partial(build_mpt_alibi_tensor, alibi_bias_max=16)
    expected = attended_logits(as_configured, batch("left"))
    torch.testing.assert_close(attended_logits(fused(eager), batch("left")), expected, **CLOSE)
    assert not torch.allclose(attended_logits(eager, batch("left")), expected, atol=1e-2)


@pytest.mark.parametrize(("dtype", "length"), [(torch.float32, 21), (torch.bfloat16, LONG)])
def test_all_layers_keep_one_and_the_same_mask_for_the_backward_pass(dtype, length):
    model = fused(random_mpt(heads=6)).train()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        kept = masks_kept_for_backward(model, batch("right", length), (2, 6, length, length))
    assert [tensor.dtype for tensor in kept] == [dtype] * model.config.n_layers
    assert len({tensor.data_ptr() for tensor in kept}) == 1


def test_calls_in_threads_do_not_disturb_each_other():
    model = fused(random_mpt())
    inputs = [batch(side, length) for side in SIDES for length in (15, 21, 30)]
    expected = [attended_logits(model, one) for one in inputs]
    with ThreadPoolExecutor(4) as pool:
        actual = list(pool.map(partial(attended_logits, model), inputs))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_parameters_stay_the_same_tensors_under_the_same_names():
    model = random_mpt()
    before = dict(model.named_parameters())
    use_sdpa(model)
    use_sdpa(model)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


def test_other_models_stay_as_they_are():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=VOCABULARY, **sizes))
    before = [type(module) for module in model.modules()]
    use_sdpa(model)
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_flamingo_of_mpt_answers_and_learns_the_same_with_fused_attention(when, tiny_vision):
    def build(fuse: str) -> Flamingo:
        lm = random_mpt()
        if fuse == "before":
            use_sdpa(lm)
        torch.manual_seed(2)
        visual = create_vision_encoder(str(tiny_vision), "none")[0]
        model = Flamingo(visual, lm, END_OF_CHUNK_ID, IMAGE_ID, vis_dim=visual_width(visual)).eval()
        if fuse == "after":
            use_sdpa(model)
        for block in model.gated_cross_attn_layers:
            nn.init.constant_(block.attn_gate, 1.0)
        return model

    inputs, images = batch("left"), random_images(2, 2)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    ids[0, 2] = ids[1, 7] = ids[1, 12] = IMAGE_ID
    settings = {"max_new_tokens": 6, "no_repeat_ngram_size": 1, "pad_token_id": 0, "use_cache": True}
    eager, model = build("never"), build(when)
    expected_ids, actual_ids = (m.generate(images, ids, mask, **settings).tolist() for m in (eager, model))
    assert actual_ids == expected_ids

    model.gradient_checkpointing_enable()
    for m in (eager, model):
        m.train()(images, ids, mask, labels=targets(inputs)).loss.backward()
    for expected, actual in zip(eager.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-4, atol=1e-5)
