"""Attention by plain matrix products equals PyTorch's fused kernel, alone and inside models of transformers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import EXACT
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from open_flamingo.src import attention
from open_flamingo.src.attention import LONG, NAME, QUERY_BLOCK, attend, plain_attention, use_attend

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""The same sums in another order, for numbers of about one."""
LENGTHS = st.sampled_from([1, 5, QUERY_BLOCK - 1, QUERY_BLOCK, QUERY_BLOCK + 1, 2 * QUERY_BLOCK + 17])


def random_heads(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, 8).to(dtype).requires_grad_()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    queries=LENGTHS,
    keys=LENGTHS,
    how=st.sampled_from(["causal", "all", "seen", "added", "one row"]),
    scale=st.sampled_from([None, 0.7]),
)
def test_plain_products_equal_the_fused_kernel(queries, keys, how, scale):
    torch.manual_seed(queries + keys)
    keys = queries if how == "causal" else keys
    q, k, v = (random_heads(2, 3, n) for n in (queries, keys, keys))
    mask = None
    if how in ("seen", "one row"):
        mask = torch.rand(2, 1, 1 if how == "one row" else queries, keys) < 0.7
        mask[..., 0] = True
    elif how == "added":
        mask = torch.randn(1, 3, queries, keys)
    out = plain_attention(q, k, v, mask, 0.0, how == "causal", scale)
    expected = F.scaled_dot_product_attention(q, k, v, mask, 0.0, how == "causal", scale=scale)
    torch.testing.assert_close(out, expected, **CLOSE)
    gradient = torch.randn_like(out)
    for ours, theirs in zip(*(torch.autograd.grad(x, (q, k, v), gradient) for x in (out, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_a_row_that_sees_nothing_stays_finite():
    q, k, v = (random_heads(1, 1, 3) for _ in range(3))
    out = plain_attention(q, k, v, torch.zeros(1, 1, 3, 3, dtype=torch.bool))
    assert out.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), (q, k, v)))


def test_dropout_drops_weights_and_keeps_their_mean():
    torch.manual_seed(0)
    q, k = (random_heads(1, 1, 500) for _ in range(2))
    ones = torch.ones(1, 1, 500, 8)
    sums = plain_attention(q, k, ones, dropout=0.5)
    assert abs(sums.mean().item() - 1) < 0.02
    assert sums.std() > 0.01


@pytest.mark.parametrize(
    ("dtype", "keys", "kernel"),
    [
        (torch.bfloat16, LONG - 1, plain_attention),
        (torch.float16, 5, plain_attention),
        (torch.bfloat16, LONG, F.scaled_dot_product_attention),
        (torch.float32, 5, F.scaled_dot_product_attention),
    ],
)
def test_half_precision_on_a_cpu_takes_plain_products_unless_the_text_is_long(dtype, keys, kernel):
    torch.manual_seed(0)
    q, k, v = (random_heads(1, 2, n, dtype=dtype) for n in (4, keys, keys))
    torch.testing.assert_close(attend(q, k, v), kernel(q, k, v), **EXACT)


def random_llama() -> LlamaForCausalLM:
    """A LLaMA with fewer heads of keys than of queries, and scores that matter."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def padded(side: str) -> tuple[Tensor, Tensor]:
    """Ids of two texts and their mask; the second text is padded at `side`."""
    ids = torch.randint(50, (2, 20))
    mask = torch.ones_like(ids)
    if side == "left":
        mask[1, :7] = 0
    elif side == "right":
        mask[1, 13:] = 0
    return ids, mask


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_a_language_model_gives_the_same_logits_and_gradients(side, monkeypatch):
    monkeypatch.setattr(attention, "_is_faster_plain", lambda q, k: True)  # in fp32 as well, where equality is tight
    ids, mask = padded(side)
    results = []
    for is_ours in (False, True):
        model = random_llama()
        if is_ours:
            use_attend(model)
            assert model.config._attn_implementation == NAME
        logits = model(ids, attention_mask=mask).logits[mask.bool()]
        logits.square().mean().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_language_model_in_bf16_agrees_with_itself_in_fp32():
    ids, mask = padded("right")
    model = random_llama().bfloat16()
    use_attend(model)
    with torch.no_grad():
        ours = model(ids, attention_mask=mask).logits.float()[mask.bool()]
        exact = model.float()(ids, attention_mask=mask).logits[mask.bool()]
    assert (ours - exact).norm() < 0.03 * exact.norm()


def test_a_cached_step_equals_the_whole_text():
    ids, mask = padded("left")
    model = random_llama().bfloat16()
    use_attend(model)
    with torch.no_grad():
        whole = model(ids, attention_mask=mask).logits[:, -1]
        cache = DynamicCache(config=model.config)
        model(ids[:, :-1], attention_mask=mask[:, :-1], past_key_values=cache)
        last = model(ids[:, -1:], attention_mask=mask, past_key_values=cache).logits[:, -1]
    assert (whole.float() - last.float()).norm() < 0.03 * whole.float().norm()


def test_a_model_that_attends_eagerly_stays_as_it_is():
    model = random_llama()
    model.set_attn_implementation("eager")
    use_attend(model)
    assert model.config._attn_implementation == "eager"
