"""The loss from hidden states in chunks: what PyTorch's own cross-entropy gives for whole logits, and its gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from open_flamingo.src import loss as loss_module
from open_flamingo.src.loss import loss_of_logits, supervised_loss
from open_flamingo.src.trained_rows import TrainedRows

POSITIONS, WIDTH, VOCABULARY = 37, 16, 300
ROWS = torch.tensor([5, 9])
SCALE = 0.3
"""What the total is multiplied by before the backward pass, as gradients are when they are averaged."""


@pytest.fixture(params=[1, 7, 64], ids=lambda positions: f"{positions} positions a chunk")
def chunked(request, monkeypatch):
    """Chunks of so many positions."""
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", request.param * VOCABULARY)


def drawn(*, bias: bool, rows: bool):
    """Hidden states, a head, targets of which some are the rows that train, and these rows."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    targets = torch.randint(0, VOCABULARY, (POSITIONS,), generator=generator)
    targets[:3] = ROWS[0]
    own = torch.randn(len(ROWS), WIDTH, generator=generator).requires_grad_() if rows else None
    return hidden, weight, torch.randn(VOCABULARY, generator=generator) if bias else None, targets, own


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [False, True])
def test_losses_predictions_and_gradients_are_those_of_whole_logits(chunked, bias, rows):
    hidden, weight, head_bias, targets, own = drawn(bias=bias, rows=rows)
    inputs = [hidden] if own is None else [hidden, own]
    ours = supervised_loss(hidden, weight, head_bias, targets, own, None if own is None else ROWS)
    gradients = torch.autograd.grad(ours.total * SCALE, inputs)
    table = weight if own is None else weight.index_copy(0, ROWS, own)
    logits = F.linear(hidden, table, head_bias)
    losses = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(ours.losses, losses)
    torch.testing.assert_close(ours.total, losses.sum())
    assert torch.equal(ours.predictions, logits.argmax(dim=-1))
    torch.testing.assert_close(gradients, torch.autograd.grad(losses.sum() * SCALE, inputs), rtol=1e-5, atol=1e-5)


def test_no_supervised_position_costs_nothing_and_still_has_a_gradient():
    hidden = torch.zeros(0, WIDTH, requires_grad=True)
    out = supervised_loss(hidden, torch.randn(VOCABULARY, WIDTH), None, torch.zeros(0, dtype=torch.long))
    out.total.backward()
    assert out.total == 0
    assert hidden.grad is not None


def test_under_autocast_the_products_are_in_half_precision_and_the_loss_is_not(chunked):
    hidden, weight, _, targets, _ = drawn(bias=False, rows=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = supervised_loss(hidden, weight, None, targets)
        expected = loss_of_logits(F.linear(hidden, weight), targets)
    assert ours.losses.dtype == torch.float32
    torch.testing.assert_close(ours.losses, expected.losses)
    (gradient,) = torch.autograd.grad(ours.total, hidden)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.total, hidden)[0], rtol=0.05, atol=0.05)


def test_nothing_of_the_size_of_the_logits_is_kept_for_the_backward_pass():
    hidden, weight, _, targets, _ = drawn(bias=False, rows=False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        supervised_loss(hidden, weight, None, targets)
    assert sum(kept) == hidden.numel()


class Tied(nn.Module):
    """An embedding and a head that share their weights, or not."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids).tanh())


@pytest.mark.parametrize("tied", [False, True])
def test_trained_rows_get_the_gradient_that_the_whole_table_would_have_had(tied):
    torch.manual_seed(0)
    model, ids = Tied(tied=tied), torch.tensor([[1, 5, 9, 5, 2]])
    expected_logits = model(ids)
    (table,) = torch.autograd.grad(expected_logits.square().sum(), [model.embedding.weight])
    model.requires_grad_(False)
    rows = TrainedRows(model.embedding, model.head, ROWS.tolist())
    logits = model(ids)
    torch.testing.assert_close(logits, expected_logits)
    (gradient,) = torch.autograd.grad(logits.square().sum(), [rows.weight])
    torch.testing.assert_close(gradient, table[ROWS])


def test_trained_rows_stand_in_for_those_of_the_table():
    torch.manual_seed(0)
    model, ids = Tied(tied=True), torch.tensor([[1, 5, 9]])
    rows = TrainedRows(model.embedding, model.head, ROWS.tolist())
    rows.weight.data += 1
    changed = model(ids)
    model.embedding.weight.data[ROWS] += 1
    rows.take(model.embedding.weight)
    torch.testing.assert_close(model(ids), changed)
