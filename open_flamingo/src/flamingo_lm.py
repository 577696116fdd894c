"""Gated cross-attention spliced into any Hugging Face causal language model, whose own names stay as they are."""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from open_flamingo.src.helpers import GatedCrossAttentionBlock
from open_flamingo.src.media import attended_media, place_media, select_positions


class FlamingoLayer(nn.Module):
    """A decoder layer, with a gated cross-attention block before it or none."""

    gradient_checkpointing = False

    def __init__(self, gated_cross_attn_layer: GatedCrossAttentionBlock | None, decoder_layer: nn.Module) -> None:
        super().__init__()
        self.gated_cross_attn_layer = gated_cross_attn_layer
        self.decoder_layer = decoder_layer

    def __getattr__(self, name: str) -> Any:
        # transformers reads attributes of its layers (attention_type, layer_idx, ...): pass them through
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("decoder_layer"), name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Hidden states (b, t, d) through the block, then through the decoder layer with all other arguments."""
        block = self.gated_cross_attn_layer
        if block is not None:
            if hidden_states.dim() != 3:
                raise ValueError(f"{_name(self.decoder_layer)} carries several streams per token: it is not supported")
            # what is attended goes in as an argument: recomputation in the backward pass runs outside the call
            run = partial(checkpoint, block, use_reentrant=False) if self._checkpoints() else block
            hidden_states = run(hidden_states, attended_media(hidden_states.shape[1]))
        return self.decoder_layer(hidden_states, *args, **kwargs)

    def _checkpoints(self) -> bool:
        return self.gradient_checkpointing and self.training


def find_decoder_layers(lang_encoder: nn.Module, attr_name: str | None = None) -> str:
    """The dotted name of the list of decoder layers, `attr_name` if given, else the one list as long as the model is deep.

    Raises ValueError where there is none, or more than one.
    """
    lists = {name: m for name, m in lang_encoder.named_modules() if isinstance(m, nn.ModuleList)}
    if attr_name is not None:
        if attr_name not in lists:
            raise ValueError(f"{_name(lang_encoder)} has no list of layers {attr_name!r}; it has: {', '.join(lists)}")
        return attr_name
    depth = getattr(lang_encoder.config.get_text_config(), "num_hidden_layers", None)  # type: ignore[operator, union-attr]
    found = [name for name, m in lists.items() if len(m) == depth and not _inside_another(name, lists)]
    if len(found) != 1:
        raise ValueError(
            f"{_name(lang_encoder)}: found {len(found)} lists of {depth} decoder layers"
            f" ({', '.join(found or lists) or 'no list at all'}); name the right one with decoder_layers_attr_name,"
            " for example 'model.layers'"
        )
    return found[0]


def inject(lang_encoder: nn.Module, *, vis_dim: int, every: int, attr_name: str | None = None) -> None:
    """Put a gated cross-attention block before every `every`-th decoder layer of `lang_encoder`, in place."""
    if every < 1:
        raise ValueError(f"cross_attn_every_n_layers must be at least 1, not {every}")
    name = find_decoder_layers(lang_encoder, attr_name)
    layers = lang_encoder.get_submodule(name)
    assert isinstance(layers, nn.ModuleList)
    if every > len(layers):
        raise ValueError(f"cross_attn_every_n_layers is {every}, but {_name(lang_encoder)} has {len(layers)} layers")
    dim = lang_encoder.config.get_text_config().hidden_size  # type: ignore[operator, union-attr]
    for i, layer in enumerate(layers):
        has_block = (i + 1) % every == 0
        block = GatedCrossAttentionBlock(dim=dim, dim_visual=vis_dim) if has_block else None
        layers[i] = FlamingoLayer(block, layer)
    for stack in _stacks(lang_encoder, name):
        stack.register_forward_pre_hook(place_media, with_kwargs=True)
    lang_encoder.get_output_embeddings().register_forward_pre_hook(select_positions)  # type: ignore[operator]


def _stacks(lang_encoder: nn.Module, name: str) -> list[nn.Module]:
    """The modules around the list of layers `name`, of which the outermost that is called at all is called with ids.

    It is not always the list's owner (Gemma 3 with its own tower), nor the one below the head (OPT), and never the
    language model itself, whose hooks PEFT passes by.
    """
    parts = name.split(".")
    return [lang_encoder.get_submodule(".".join(parts[:end])) for end in range(1, len(parts))] or [lang_encoder]


def eject(lang_encoder: nn.Module) -> None:
    """Take the blocks out again, in place: the language model is what it was before `inject`, but for its hooks."""
    for module in list(lang_encoder.modules()):
        if isinstance(module, nn.ModuleList):
            for i, layer in enumerate(module):
                if isinstance(layer, FlamingoLayer):
                    module[i] = layer.decoder_layer


def _name(module: nn.Module) -> str:
    return type(module).__name__


def _inside_another(name: str, lists: dict[str, nn.ModuleList]) -> bool:
    return any(name.startswith(f"{other}.") for other in lists)
