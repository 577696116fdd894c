"""How the model is spread over ranks: alone, replicated by DDP, or sharded in place by FSDP2.

With FSDP2 every rank calls the same groups of modules in the same order, since each call gathers a group's weights.
Weights are loaded before `distribute`, the optimizer is made after it: sharding replaces the parameters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from open_flamingo.instruction_tuning.config import Sharding
from open_flamingo.instruction_tuning.distributed import Ranks
from open_flamingo.src.flamingo import Flamingo
from open_flamingo.src.flamingo_lm import FlamingoLayer


def distribute(model: Flamingo, ranks: Ranks, sharding: Sharding | None = None) -> nn.Module:
    """The module to call in training, on its device: `model` itself, alone or sharded in place, or DDP around it.

    One rank has nothing to shard. Raises ValueError where FSDP cannot run on these ranks.
    """
    if ranks.world_size == 1:
        return model.to(ranks.device)
    if sharding is not None:
        shard(model, device_mesh(ranks, sharding))
        model.vision_encoder.to(ranks.device)
        return model
    # looking for unused parameters keeps DDP from sorting its buckets anew after the first step: on more than two ranks
    # that changes the order of sums, and a run that is continued would no longer be bit-equal to one that was not
    return DistributedDataParallel(
        model.to(ranks.device),
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=True,
    )


def device_mesh(ranks: Ranks, sharding: Sharding) -> DeviceMesh:
    """All ranks in one line, or nodes by the ranks of a node."""
    kind = ranks.device.type
    if kind == "mps":
        raise ValueError("--fsdp needs CUDA devices or CPUs, not MPS: leave it out")
    if sharding == "full":
        return init_device_mesh(kind, (ranks.world_size,), mesh_dim_names=("shard",))
    if ranks.world_size % ranks.node_size:
        raise ValueError(
            f"--fsdp_sharding_strategy hybrid needs as many ranks on each node; {ranks.world_size} ranks do not fill"
            f" nodes of {ranks.node_size}: use 'full'"
        )
    shape = (ranks.world_size // ranks.node_size, ranks.node_size)
    return init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))


def groups(model: Flamingo) -> list[nn.Module]:
    """The modules whose weights are gathered together: parts of the resampler, decoder layers with their blocks."""
    parts = [part for layer in model.perceiver.layers for part in layer.children()]
    return [*parts, *(module for module in model.lang_encoder.modules() if isinstance(module, FlamingoLayer))]


def shard(model: Flamingo, mesh: DeviceMesh) -> None:
    """Shard `model` in place over `mesh`, in groups: parts of the resampler, decoder layers with their blocks, the rest.

    `model` may still be on the CPU: each group moves to the mesh's device on its own. The tower stays whole.
    """
    # a rank whose batch has no image does not call the tower, so the others would wait for its shards for ever
    tower = set(model.vision_encoder.parameters())
    for module in (*groups(model), model):
        fully_shard(module, mesh=mesh, ignored_params=tower)
    register_fsdp_forward_method(model, "generate")


@contextmanager
def unsynced(wrapped: nn.Module) -> Iterator[None]:
    """No gradients are exchanged inside: for all micro-batches of a window but its last."""
    if isinstance(wrapped, DistributedDataParallel):
        with wrapped.no_sync():
            yield
    elif isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            wrapped.set_requires_gradient_sync(True)
    else:
        yield


def is_sharded(model: nn.Module) -> bool:
    """Whether every rank has to call `model` for one to have an answer."""
    return isinstance(model, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """The full value of a sharded tensor, on every rank, which all must ask for; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()` with whole tensors on the CPU: the same with any number of ranks, sharded or not.

    All ranks must ask for it.
    """
    state = optimizer.state_dict()
    moments = {i: {name: whole(value).cpu() for name, value in entry.items()} for i, entry in state["state"].items()}
    return state | {"state": moments}


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take over what `optimizer_state` returned, each rank its shards.

    Raises ValueError where it is the state of other parameters.
    """
    groups, saved_groups = optimizer.param_groups, state["param_groups"]
    sizes, saved_sizes = ([len(group["params"]) for group in each] for each in (groups, saved_groups))
    if sizes != saved_sizes:
        raise ValueError(
            f"the optimizer state is of {saved_sizes} parameters in its groups, but {sizes} train: continue with the"
            " tuning config, learning rates and weight decay that it was saved with"
        )
    parameters = [p for group in groups for p in group["params"]]
    ids = [i for group in saved_groups for i in group["params"]]
    moments = {
        i: {name: _placed(value, parameter) for name, value in state["state"][i].items()}
        for i, parameter in zip(ids, parameters, strict=True)
        if i in state["state"]
    }
    optimizer.load_state_dict(state | {"state": moments})


def _placed(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy of a parameter's moment, sharded as the parameter is; its number of steps is a scalar, and whole."""
    if value.dim() and value.shape != parameter.shape:
        raise ValueError(
            f"the optimizer state is of a parameter of shape {tuple(value.shape)}, but {tuple(parameter.shape)} trains"
            " in its place: continue with the tuning config that it was saved with"
        )
    if value.dim() and isinstance(parameter, DTensor):
        # each rank has the whole value, so none is sent one
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value.clone()
