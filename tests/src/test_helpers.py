"""The resampler and the gated block on their own."""

import pytest
import torch
from tiny import EXACT

from open_flamingo.src.helpers import GatedCrossAttentionBlock, PerceiverResampler
from open_flamingo.src.media import ImageLatents, Media

WIDTH = 16


def resampler(**kwargs) -> PerceiverResampler:
    torch.manual_seed(0)
    return PerceiverResampler(dim=WIDTH, depth=2, dim_head=8, heads=2, num_latents=3, **kwargs).requires_grad_(False)


@pytest.mark.parametrize("shape", [(2, 3, 1, 5, WIDTH), (1, 1, 4, 9, WIDTH), (0, 1, 1, 5, WIDTH)])
def test_resampler_gives_each_image_its_latents_whatever_the_number_of_visual_tokens(shape):
    assert resampler()(torch.randn(shape)).shape == (*shape[:2], 3, WIDTH)


def test_resampler_sees_each_image_alone():
    x = torch.randn(2, 3, 1, 5, WIDTH)
    together = resampler()(x)
    for b in range(2):
        for T in range(3):
            alone = resampler()(x[b : b + 1, T : T + 1])
            torch.testing.assert_close(together[b, T], alone[0, 0])


def test_resampler_does_not_tell_the_order_of_frames_unless_it_has_frame_embeddings():
    x = torch.randn(1, 1, 2, 5, WIDTH)
    torch.testing.assert_close(resampler()(x.flip(2)), resampler()(x))
    ordered = resampler(max_num_frames=4)
    assert (ordered(x.flip(2)) - ordered(x)).abs().max() > 1e-2


def test_resampler_does_not_tell_the_order_of_images_unless_it_has_media_embeddings():
    x = torch.randn(1, 2, 1, 5, WIDTH)
    torch.testing.assert_close(resampler()(x.flip(1)), resampler()(x).flip(1))
    ordered = resampler(max_num_media=4)
    assert (ordered(x.flip(1)) - ordered(x).flip(1)).abs().max() > 1e-2


@pytest.mark.parametrize("with_image", [True, False])
def test_a_new_block_is_the_identity(with_image):
    block = GatedCrossAttentionBlock(dim=WIDTH, dim_visual=8)
    ids = torch.tensor([[0, 1, 0, 0]])
    attended = (
        Media(ImageLatents(torch.randn(1, 3, 8)), ids == 1, media_token_id=1).place(ids, past=0) if with_image else None
    )
    x = torch.randn(1, 4, WIDTH)
    torch.testing.assert_close(block(x, attended), x, **EXACT)


def test_a_new_block_learns_through_its_gates_first():
    block = GatedCrossAttentionBlock(dim=WIDTH, dim_visual=8)
    ids = torch.tensor([[0, 1, 0, 0]])
    attended = Media(ImageLatents(torch.randn(1, 3, 8)), ids == 1, media_token_id=1).place(ids, past=0)
    block(torch.randn(1, 4, WIDTH), attended).square().sum().backward()
    assert {name for name, p in block.named_parameters() if p.grad.any()} == {"attn_gate", "ff_gate"}
