"""The memory of a training step, by running the step itself on tensors that have shapes but no values.

Every operation of the model is carried out in shapes alone, by `FakeTensorMode`, except on small tensors with values:
token ids, masks and positions, which decide how many images there are and where. A meter adds up the storages that live.
"""

# b batch, t text tokens, N images

import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from open_flamingo.instruction_tuning.data.batches import Batch
from open_flamingo.instruction_tuning.distributed import Ranks
from open_flamingo.instruction_tuning.parallel import groups
from open_flamingo.instruction_tuning.trainer import Trainer, forward
from open_flamingo.src.flamingo import Flamingo

STEP_COUNT = 4
"""Bytes of AdamW's own count of steps, one per parameter."""

DEPENDS_ON_VALUES = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
INDEXING = {
    torch.ops.aten.index,
    torch.ops.aten.index_put,
    torch.ops.aten.index_put_,
    torch.ops.aten._index_put_impl_,
    torch.ops.aten._unsafe_index,
    torch.ops.aten._unsafe_index_put,
}
"""Operations that take masks with values in place of indices."""


class Meter(TorchDispatchMode):
    """Adds up the bytes of all storages that are made inside, from when they are made until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        """Bytes now, without those that were set apart."""
        self.apart = 0
        """Bytes set apart: gradients of parameters."""
        self.most_live = 0
        self.most = 0
        """Most bytes at one time, those set apart included."""
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "prim":  # a question about a tensor, such as on which device it is
            return func(*args, **(kwargs or {}))
        for tensor in _tensors((args, kwargs)):
            self._know(tensor.untyped_storage(), counted=False)
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            self._know(tensor.untyped_storage(), counted=True)
        self.most_live = max(self.most_live, self.live)
        self.most = max(self.most, self.live + self.apart)
        return out

    def set_apart(self, tensor: Tensor) -> None:
        """Count the storage of `tensor`, which stays from now on, apart from all others."""
        storage = tensor.untyped_storage()
        size = self._sizes.get(id(storage), 0)
        self._sizes[id(storage)] = 0
        self.live -= size
        self.apart += size

    def _know(self, storage: torch.UntypedStorage, *, counted: bool) -> None:
        if id(storage) not in self._sizes:
            size = storage.nbytes() if counted else 0
            self._sizes[id(storage)] = size
            self.live += size
            weakref.finalize(storage, self._forget, id(storage))

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


class Imagined(TorchDispatchMode):
    """Carries out every operation in shapes alone, unless it is on small tensors that all have values."""

    def __init__(self, device: torch.device, largest: int) -> None:
        """Tensors of up to `largest` elements keep their values; those without are as if on `device`."""
        super().__init__()
        self.device = device
        self.largest = largest
        self.shapes = FakeTensorMode()

    def fake(self, tensor: Tensor) -> Tensor:
        """A tensor like `tensor`, on the device, without values."""
        with self.shapes:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if func.overloadpacket in INDEXING:
            args = (args[0], _as_indices(args[1]), *args[2:])
        has_values = not any(isinstance(tensor, FakeTensor) for tensor in _tensors((args, kwargs)))
        if has_values and any(tag in func.tags for tag in DEPENDS_ON_VALUES):
            return func(*args, **kwargs)
        with self.shapes:
            out = func(*self._fakes(args), **self._fakes(kwargs))
        if has_values and all(tensor.numel() <= self.largest for tensor in _tensors(out)):
            return func(*args, **kwargs)
        return out

    def _fakes(self, tree: Any) -> Any:
        return tree_map(lambda x: self.fake(x) if isinstance(x, Tensor) and not isinstance(x, FakeTensor) else x, tree)


@dataclass(frozen=True)
class Memory:
    """The bytes of one rank in training."""

    weights: int
    """Parameters and buffers."""
    gradients: int
    """Of all parameters that train, at the end of the backward pass."""
    optimizer: int
    gathered: int
    """With FSDP, the most that is whole for a moment beside the rank's own shards."""
    activations: int
    """The most that forward and backward pass hold at one time, the batch included, without the gradients above."""
    peak: int
    """The most at one time: while gradients are made, activations go."""


def estimate(trainer: Trainer, batch: Batch, ranks: Ranks, *, shards: int = 1) -> Memory:
    """The memory of training steps on batches like `batch`, by one forward and backward pass in shapes alone.

    The model of `trainer` is on the meta device, and without values afterwards. Weights, gradients and optimizer state
    are cut in `shards` pieces. Raises RuntimeError for a model whose course depends on the values of its activations.
    """
    model = trainer.model
    trained = [p for p in model.parameters() if p.requires_grad]
    weights, gradients = (sum(_share(p, shards) for p in tensors) for tensors in (_sharded(model), trained))
    weights += sum(_size(x) for x in chain(model.vision_encoder.parameters(), model.buffers()))
    optimizer = sum(2 * _share(p, shards) + STEP_COUNT for p in trained)
    gathered = _gathered(model) if shards > 1 else 0
    mode = Imagined(ranks.device, batch.input_ids.numel())
    imagine(model, mode)
    batch.images = mode.fake(batch.images)
    trainer.ranks = Ranks(0, 1, ranks.device)
    with mode:
        forward(trainer, _smallest_like(batch))  # the first call of a model does more than the others
        meter = measure(trainer, batch)
    inputs = sum(_size(value) for value in vars(batch).values() if isinstance(value, Tensor))
    lasting = weights + optimizer + gathered
    if trainer.accumulation > 1 or ranks.world_size > 1:  # gradients are there from one backward pass to the next
        peak = lasting + inputs + meter.most_live + gradients
    else:
        peak = lasting + max(inputs + meter.most, gradients)
    return Memory(weights, gradients, optimizer, gathered, inputs + meter.most_live, peak)


def measure(trainer: Trainer, batch: Batch) -> Meter:
    """A forward and a backward pass under a meter, which counts the parameters' gradients apart."""
    meter = Meter()
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    handles = [p.register_post_accumulate_grad_hook(lambda p: meter.set_apart(p.grad)) for p in trained]
    try:
        with meter:
            forward(trainer, batch).total.backward()
    finally:
        for handle in handles:
            handle.remove()
    return meter


def largest_batch(
    model: Flamingo, *, batch_size: int, max_length: int, max_img: int, image_shape: Sequence[int]
) -> Batch:
    """The batch that takes most memory: full texts with as many images as may be, every other token supervised.

    Its images, (N, 1, C, H, W), are on the meta device. One sample of several is a token short, since padding needs masks.
    """
    ids = torch.full((batch_size, max_length), int(model.media_token_id == 0))
    images = min(max_img, max_length - 1)
    ids[:, [i * max_length // images for i in range(images)]] = model.media_token_id
    mask = torch.ones_like(ids)
    mask[1:, -1:][-1:] = 0
    return Batch(
        images=torch.empty(batch_size * images, 1, *image_shape, device="meta"),
        input_ids=ids,
        attention_mask=mask,
        supervised=(ids != model.media_token_id) & (mask == 1),
        datasets=torch.zeros_like(ids),
    )


def _smallest_like(batch: Batch) -> Batch:
    """Two tokens of text."""
    ids = batch.input_ids[:1, -1:].repeat(1, 2)
    return Batch(batch.images[:0], ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool), ids)


def imagine(model: nn.Module, mode: Imagined) -> None:
    """Put tensors without values in place of all parameters and buffers of `model`, one in place of one that is shared."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(mode.fake(parameter), requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.fake(buffer)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _share(parameter: Tensor, shards: int) -> int:
    """The bytes of the first of `shards` pieces of a parameter, cut along its first dimension."""
    if shards == 1 or not parameter.dim():
        return _size(parameter)
    return -(-len(parameter) // shards) * _size(parameter) // max(len(parameter), 1)


def _sharded(model: Flamingo) -> Iterator[nn.Parameter]:
    """All parameters but those of the tower."""
    return (p for name, p in model.named_parameters() if not name.startswith("vision_encoder."))


def _gathered(model: Flamingo) -> int:
    """What FSDP holds whole: all that is in no group, a group at work with the next one, and a group's gradients twice."""
    gathered = [list(module.parameters()) for module in groups(model)]
    grouped = {id(p) for group in gathered for p in group}
    rest = sum(_size(p) for p in _sharded(model) if id(p) not in grouped)
    return (
        rest
        + 2 * max(_total(group) for group in gathered)
        + 2 * max(_total(p for p in group if p.requires_grad) for group in gathered)
    )


def _total(parameters: Iterable[nn.Parameter]) -> int:
    return sum(_size(p) for p in parameters)


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _as_indices(indices: Any) -> list[Tensor | None]:
    """Masks with values as the indices where they are true."""
    flat: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            flat += index.nonzero().unbind(dim=1)
        else:
            flat.append(index)
    return flat
