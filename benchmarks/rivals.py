"""What benchmarks/train.py compares: one step of ours, of Idefics, of a bare language model, and of our parts alone.

Ours and Idefics train the resampler and the gated blocks; everything else is frozen, in bf16 where the precision is. The
bare language model is frozen whole: its backward pass carries the gradient of the activations down to where our first
block stands, and its logits are those of the supervised positions, so it does what ours cannot do without.
"""

# b batch, T slots for images, N real images of the batch, C H W an image

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from train_cases import END_ID, MEDIA_ID, SIZES, Case, language_model, pictures, text, tower
from transformers import IdeficsConfig, IdeficsForVisionText2Text

from open_flamingo.instruction_tuning.config import OptimConfig, Precision
from open_flamingo.instruction_tuning.data.batches import Batch
from open_flamingo.instruction_tuning.distributed import Ranks
from open_flamingo.instruction_tuning.precision import autocast, cast_frozen
from open_flamingo.instruction_tuning.trainer import MAX_GRAD_NORM, make_trainer, train_step
from open_flamingo.instruction_tuning.tuning import TuningConfig, prepare_model_for_tuning
from open_flamingo.src.flamingo import Flamingo
from open_flamingo.src.vision import visual_tokens

Step = Callable[[], object]

CPU = torch.device("cpu")


def ours(case: Case, precision: Precision) -> Step:
    """Our training step on the real images, as our loader gives them."""
    return ours_on(pictures(case, case.images).flatten(0, 1), case, precision)


def ours_padded(case: Case, precision: Precision) -> Step:
    """Our training step on padded samples."""
    return ours_on(pictures(case, case.slots), case, precision)


def ours_padded_twice(case: Case, precision: Precision) -> Step:
    """Our training step on samples with twice as many slots, and the same real images."""
    return ours_on(pictures(case, 2 * case.slots), case, precision)


def ours_compiled(case: Case, precision: Precision) -> Step:
    """Our training step with `--compile`."""
    return ours_on(pictures(case, case.images).flatten(0, 1), case, precision, is_compiled=True)


def ours_on(images: Tensor, case: Case, precision: Precision, *, is_compiled: bool = False) -> Step:
    """Our training step on real images (N, 1, C, H, W) or padded ones (b, T, 1, C, H, W)."""
    model = flamingo()
    prepare_model_for_tuning(model, TuningConfig(lora=False, unfrozen=["perceiver", "gated_cross_attn_layer"]))
    optim = OptimConfig(tuning_config=Path(), precision=precision, warmup_steps=0, compile=is_compiled)
    trainer = make_trainer(model, optim, {}, 10**6, Ranks(0, 1, CPU))
    ids, supervised = text(case)
    batch = Batch(images, ids, torch.ones_like(ids), supervised, datasets=torch.zeros_like(ids))
    return lambda: train_step(trainer, [batch])


def flamingo(every: int = SIZES.every) -> Flamingo:
    """Ours at our sizes, with a block for every so many layers and open gates."""
    model = Flamingo(
        tower(),
        language_model(),
        END_ID,
        MEDIA_ID,
        vis_dim=SIZES.vision_width,
        cross_attn_every_n_layers=every,
        resampler_depth=SIZES.resampler_depth,
        resampler_latents=SIZES.resampler_latents,
    )
    for block in model.gated_cross_attn_layers:
        nn.init.ones_(block.attn_gate)
        nn.init.ones_(block.ff_gate)
    return model


def tower_alone(case: Case, precision: Precision) -> Step:
    """Our tower on the real images, without gradients."""
    visual = tower()
    cast_frozen(visual, precision)
    images = pictures(case, case.images).flatten(0, 2)

    def step() -> None:
        with autocast(CPU, precision):
            visual_tokens(visual, images)

    return step


def bare(case: Case, precision: Precision) -> Step:
    """The language model alone on the same tokens."""
    lm = language_model().requires_grad_(False)
    cast_frozen(lm, precision)
    lm.model.layers[SIZES.every - 1].register_forward_pre_hook(_want_gradient)
    ids, supervised = text(case)
    at, targets = F.pad(supervised[:, 1:], (0, 1)), ids[:, 1:][supervised[:, 1:]]

    def step() -> None:
        with autocast(CPU, precision):
            hidden = lm.model(ids, use_cache=False).last_hidden_state
            logits = lm.lm_head(hidden[at])
        F.cross_entropy(logits.float(), targets).backward()

    return step


def _want_gradient(_layer: nn.Module, args: tuple[Tensor, ...]) -> None:
    args[0].requires_grad_()


def idefics(case: Case, precision: Precision) -> Step:
    """Idefics on padded samples, all of whose slots it encodes."""
    return idefics_on(case.slots, case, precision)


def idefics_real(case: Case, precision: Precision) -> Step:
    """Idefics on the real images alone: its best case, where all samples of a batch have the same number."""
    return idefics_on(case.images, case, precision)


def idefics_on(slots: int, case: Case, precision: Precision) -> Step:
    """A training step of Idefics as one would write it, with `slots` images per sample."""
    model = IdeficsForVisionText2Text._from_config(idefics_config(), attn_implementation="sdpa").train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("perceiver_resampler" in name or "gated_cross_attn_layers" in name)
    cast_frozen(model, precision)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamW(trained, lr=1e-4, fused=True)
    ids, supervised = text(case)
    time = (ids == MEDIA_ID).cumsum(dim=1) - 1
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pictures(case, slots).squeeze(2),
        "image_attention_mask": F.one_hot(time, slots),
        "labels": ids.where(supervised, -100),
    }

    def step() -> None:
        with autocast(CPU, precision):
            loss = model(**inputs, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return step


def idefics_config(every: int = SIZES.every) -> IdeficsConfig:
    """Idefics at our sizes, with a block for every so many layers."""
    vision = {
        "embed_dim": SIZES.vision_width,
        "image_size": SIZES.pixels,
        "intermediate_size": 4 * SIZES.vision_width,
        "patch_size": SIZES.patch,
        "num_hidden_layers": SIZES.vision_layers,
        "num_attention_heads": SIZES.vision_heads,
    }
    resampler = {
        "use_resampler": True,
        "resampler_depth": SIZES.resampler_depth,
        "resampler_n_latents": SIZES.resampler_latents,
        "resampler_n_heads": SIZES.resampler_heads,
        "resampler_head_dim": SIZES.head_width,
    }
    return IdeficsConfig(
        vocab_size=SIZES.vocabulary,
        hidden_size=SIZES.width,
        intermediate_size=SIZES.mlp,
        num_hidden_layers=SIZES.layers,
        num_attention_heads=SIZES.heads,
        cross_layer_interval=every,
        alpha_initializer="ones",
        use_resampler=True,
        vision_config=vision,
        perceiver_config=resampler,
    )


def block_products(case: Case, precision: Precision) -> Step:
    """The matrix products of our gated blocks with their weights."""
    tokens, latents = case.batch * case.tokens, case.batch * case.images * SIZES.resampler_latents
    inner = SIZES.resampler_heads * SIZES.head_width
    block = [
        (tokens, SIZES.width, inner),
        (latents, SIZES.vision_width, 2 * inner),
        (tokens, inner, SIZES.width),
        (tokens, SIZES.width, 4 * SIZES.width),
        (tokens, 4 * SIZES.width, SIZES.width),
    ]
    return products(block * (SIZES.layers // SIZES.every), precision)


def resampler_products(case: Case, precision: Precision) -> Step:
    """The matrix products of our resampler with its weights."""
    images, width = case.batch * case.images, SIZES.vision_width
    latents = images * SIZES.resampler_latents
    context = latents + images * (SIZES.pixels // SIZES.patch) ** 2
    inner = SIZES.resampler_heads * SIZES.head_width
    layer = [
        (latents, width, inner),
        (context, width, 2 * inner),
        (latents, inner, width),
        (latents, width, 4 * width),
        (latents, 4 * width, width),
    ]
    return products(layer * SIZES.resampler_depth, precision)


def products(shapes: Sequence[tuple[int, int, int]], precision: Precision) -> Step:
    """Linear layers (rows, in, out) one after another: the output, and the gradients of input and weight."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    tensors = [
        [torch.randn(size, dtype=dtype) for size in ((rows, d_in), (d_out, d_in), (rows, d_out))]
        for rows, d_in, d_out in shapes
    ]

    def step() -> None:
        for x, weight, grad in tensors:
            F.linear(x, weight)
            grad @ weight
            grad.T @ x

    return step


CONTENDERS: dict[str, Callable[[Case, Precision], Step]] = {
    "ours": ours,
    "ours, compiled": ours_compiled,
    "ours, padded": ours_padded,
    "ours, twice the slots": ours_padded_twice,
    "Idefics": idefics,
    "Idefics, real images only": idefics_real,
    "bare LM": bare,
    "tower": tower_alone,
    "products of the blocks": block_products,
    "products of the resampler": resampler_products,
}
