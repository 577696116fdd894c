"""Which image a text token attends, against a plain reference for random layouts of text and images."""

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import encode, inputs_seen, random_images
from torch import Tensor

from open_flamingo.src.helpers import GatedCrossAttentionBlock, MaskedCrossAttention
from open_flamingo.src.media import QUERY_CHUNK, ImageLatents, Media, attended_media, conditioned

WIDTH, VISUAL_WIDTH, HEADS, LATENTS = 16, 24, 2, 5
IMAGE_ID = 7
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}
"""Of sums in another order, for outputs of about ten."""
BOTH_MASKS = pytest.mark.parametrize("only_immediate", [True, False])
BOTH_SIDES = pytest.mark.parametrize("belongs_to", ["previous", "next"])


@st.composite
def layouts(draw: st.DrawFn) -> Tensor:
    """True at the `<image>` tokens of a batch (b, t); rows without any and runs longer than a chunk come up."""
    b, t = draw(st.integers(1, 3)), draw(st.integers(1, 2 * QUERY_CHUNK + 20))
    places = st.sets(st.integers(0, t - 1), max_size=4)
    locations = torch.zeros(b, t, dtype=torch.bool)
    for row in locations:
        row[list(draw(places))] = True
    return locations


LAYOUTS = settings(max_examples=40, deadline=None, derandomize=True)


def row_of(*images: int, length: int) -> Tensor:
    """One row of `length` tokens with `<image>` at the places `images`."""
    return torch.isin(torch.arange(length), torch.tensor(images))[None]


def random_parts(locations: Tensor) -> tuple[MaskedCrossAttention, Tensor, Tensor]:
    """An attention layer, text (b, t, d) and latents (N, n, d) for `locations`."""
    torch.manual_seed(0)
    attention = MaskedCrossAttention(dim=WIDTH, dim_visual=VISUAL_WIDTH, dim_head=8, heads=HEADS).requires_grad_(False)
    text = torch.randn(*locations.shape, WIDTH)
    latents = torch.randn(int(locations.sum()), LATENTS, VISUAL_WIDTH) * 3
    return attention, text, latents


def ids_of(locations: Tensor) -> Tensor:
    return torch.where(locations, IMAGE_ID, 0)


def attend(attention: MaskedCrossAttention, text: Tensor, media: Media, ids: Tensor, past: int = 0) -> Tensor:
    """The layer's output for every token (b, t, d), zero where it attends nothing."""
    attended = media.place(ids, past)
    flat = rearrange(text, "b t d -> (b t) d")
    update = attention(flat[attended.tokens], attended)
    return torch.zeros_like(flat).index_copy(0, attended.tokens, update).view_as(text)


def number_of_image(is_image: Tensor, belongs_to: str) -> Tensor:
    """The number of each token's image (t,), from 1, or 0; the rule in words of spec and paper, token by token."""
    numbers = []
    for token, is_own in enumerate(is_image.tolist()):
        before = int(is_image[: token + 1].sum())
        number = before if is_own or belongs_to == "previous" else before + 1
        numbers.append(number if number <= int(is_image.sum()) else 0)
    return torch.tensor(numbers)


def reference(
    attention: MaskedCrossAttention,
    text: Tensor,
    latents: Tensor,
    locations: Tensor,
    *,
    only_immediate: bool,
    belongs_to: str = "previous",
) -> Tensor:
    """Softmax over the latents of the images that a token may attend, sample by sample, with an explicit mask."""
    out = []
    images_of_rows = latents.split(locations.sum(dim=1).tolist())
    for x, images, is_image in zip(text, images_of_rows, locations, strict=True):
        q = rearrange(attention.to_q(attention.norm(x)), "t (h d) -> h t d", h=HEADS)
        k, v = (rearrange(y, "T n (h d) -> h T n d", h=HEADS) for y in attention.to_kv(images).chunk(2, dim=-1))
        number, time = torch.arange(1, len(images) + 1), number_of_image(is_image, belongs_to)[:, None]
        allowed = number == time if only_immediate else number <= time
        scores = torch.einsum("h t d, h T n d -> h t T n", q, k) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~allowed[None, :, :, None], float("-inf"))
        weights = scores.flatten(2).softmax(dim=-1).nan_to_num(0).view_as(scores)
        out.append(rearrange(torch.einsum("h t T n, h T n d -> h t d", weights, v), "h t d -> t (h d)"))
    return attention.to_out(torch.stack(out))


@BOTH_SIDES
@BOTH_MASKS
@LAYOUTS
@given(locations=layouts())
def test_attention_equals_the_reference(only_immediate, belongs_to, locations):
    attention, text, latents = random_parts(locations)
    media = Media(ImageLatents(latents), locations, IMAGE_ID, only_immediate, belongs_to)
    expected = reference(attention, text, latents, locations, only_immediate=only_immediate, belongs_to=belongs_to)
    actual = attend(attention, text, media, ids_of(locations))
    torch.testing.assert_close(actual, expected, **ROUNDING)


@BOTH_MASKS
@pytest.mark.parametrize("length", [QUERY_CHUNK - 1, QUERY_CHUNK, QUERY_CHUNK + 1, 3 * QUERY_CHUNK + 5])
def test_attention_of_a_run_about_as_long_as_chunks_equals_the_reference(only_immediate, length):
    locations = torch.cat((row_of(3, 4, length=length + 4), row_of(0, length=length + 4)))
    attention, text, latents = random_parts(locations)
    actual = attend(
        attention, text, Media(ImageLatents(latents), locations, IMAGE_ID, only_immediate), ids_of(locations)
    )
    expected = reference(attention, text, latents, locations, only_immediate=only_immediate)
    torch.testing.assert_close(actual, expected, **ROUNDING)


@BOTH_SIDES
@BOTH_MASKS
@LAYOUTS
@given(locations=layouts(), data=st.data())
def test_text_in_two_pieces_attends_as_text_in_one(only_immediate, belongs_to, locations, data):
    attention, text, latents = random_parts(locations)
    media, ids = Media(ImageLatents(latents), locations, IMAGE_ID, only_immediate, belongs_to), ids_of(locations)
    cut = data.draw(st.integers(1, locations.shape[1]))
    pieces = [attend(attention, text[:, :cut], media, ids[:, :cut])]
    if cut < locations.shape[1]:
        pieces.append(attend(attention, text[:, cut:], media, ids[:, cut:], past=cut))
    torch.testing.assert_close(torch.cat(pieces, dim=1), attend(attention, text, media, ids), **ROUNDING)


@BOTH_SIDES
@BOTH_MASKS
@LAYOUTS
@given(locations=layouts(), beams=st.integers(2, 3))
def test_each_beam_attends_as_its_sample(only_immediate, belongs_to, locations, beams):
    attention, text, latents = random_parts(locations)
    media, ids = Media(ImageLatents(latents), locations, IMAGE_ID, only_immediate, belongs_to), ids_of(locations)
    actual = attend(attention, text.repeat_interleave(beams, 0), media, ids.repeat_interleave(beams, 0))
    expected = attend(attention, text, media, ids).repeat_interleave(beams, 0)
    torch.testing.assert_close(actual, expected, **ROUNDING)


@BOTH_SIDES
@BOTH_MASKS
@LAYOUTS
@given(locations=layouts(), beams=st.integers(1, 3))
@torch.no_grad()
def test_generated_tokens_attend_alike_in_every_step_and_arrange_keys_once(
    only_immediate, belongs_to, locations, beams
):
    attention, _, latents = random_parts(locations)
    media = Media(ImageLatents(latents), locations, IMAGE_ID, only_immediate, belongs_to)
    whole = torch.cat((locations, torch.zeros(len(locations), 3, dtype=torch.bool)), dim=1)
    text = torch.randn(len(locations), 3, WIDTH)
    before = torch.zeros(*locations.shape, WIDTH)
    media_of_whole = Media(ImageLatents(latents), whole, IMAGE_ID, only_immediate, belongs_to)
    expected = attend(attention, torch.cat((before, text), dim=1), media_of_whole, ids_of(whole))
    steps = []
    for i in range(3):
        token, past = text[:, i : i + 1].repeat_interleave(beams, 0), locations.shape[1] + i
        out = attend(attention, token, media, torch.zeros(len(token), 1, dtype=torch.long), past)
        torch.testing.assert_close(out, expected[:, past : past + 1].repeat_interleave(beams, 0), **ROUNDING)
        steps.append(media.place(torch.zeros(len(token), 1, dtype=torch.long), past))
    assert steps[0] is steps[1] is steps[2]
    assert steps[0].keys_values(attention)[0] is steps[2].keys_values(attention)[0]


def test_in_one_layer_a_token_after_image_k_depends_on_image_k_alone():
    locations = torch.cat((row_of(2, 5, 90, length=100), row_of(0, 1, length=100)))
    attention, text, latents = random_parts(locations)
    belongs_to = locations.cumsum(dim=1) + torch.tensor([[0], [3]])
    before = attend(attention, text, Media(ImageLatents(latents), locations, IMAGE_ID), ids_of(locations))
    for image in range(len(latents)):
        others = latents.clone()
        others[image] += 1
        after = attend(attention, text, Media(ImageLatents(others), locations, IMAGE_ID), ids_of(locations))
        changed = (after != before).any(dim=-1)
        expected = belongs_to == image + 1
        expected[1] &= image >= 3
        assert torch.equal(changed, expected)


@BOTH_MASKS
@pytest.mark.parametrize("gate", [0.5, 30.0])
def test_a_token_before_any_image_gets_exactly_zero_from_attention(only_immediate, gate):
    locations = torch.cat((row_of(3, length=6), row_of(length=6)))
    torch.manual_seed(0)
    block = GatedCrossAttentionBlock(dim=WIDTH, dim_visual=VISUAL_WIDTH).requires_grad_(False)
    block.attn_gate.fill_(gate)
    text, latents = torch.randn(2, 6, WIDTH), torch.randn(1, LATENTS, VISUAL_WIDTH)
    out = block(
        text, Media(ImageLatents(latents), locations, IMAGE_ID, only_immediate).place(ids_of(locations), past=0)
    )
    assert torch.equal((out != text).any(dim=-1), locations.cumsum(dim=1) > 0)


def test_text_after_cached_media_belongs_to_the_last_image_of_its_sample():
    locations = torch.cat((row_of(0, 2, length=4), row_of(1, length=4), row_of(length=4)))
    media = Media(ImageLatents(torch.randn(3, LATENTS, VISUAL_WIDTH)), locations, IMAGE_ID, is_cached=True)
    attended = media.place(torch.zeros(3, 2, dtype=torch.long), past=0)
    assert attended.tokens.tolist() == [0, 1, 2, 3]
    assert attended.images.tolist() == [1, 2]


def test_new_tokens_after_the_last_image_attend_nothing_in_the_first_version():
    locations = row_of(1, length=3)
    attention, text, latents = random_parts(locations)
    media = Media(ImageLatents(latents), locations, IMAGE_ID, attention="next")
    prompt = attend(attention, text, media, ids_of(locations))
    assert (prompt != 0).any(dim=-1).tolist() == [[True, True, False]]
    new = attend(attention, text[:, :1], media, torch.zeros(1, 1, dtype=torch.long), past=3)
    assert (new == 0).all()


def test_image_tokens_beyond_the_images_attend_the_last_one():
    locations = row_of(0, length=3)
    media = Media(ImageLatents(torch.randn(1, LATENTS, VISUAL_WIDTH)), locations, IMAGE_ID)
    assert media.place(torch.full((1, 2), IMAGE_ID), past=3).images.tolist() == [0]


def test_keys_and_values_are_computed_once_without_gradients_and_anew_with_them():
    attention, _, values = random_parts(row_of(0, length=3))
    latents = ImageLatents(values)
    with inputs_seen([attention.to_kv]) as seen:
        for _ in range(3):
            with torch.no_grad():
                latents.keys_values(attention)
        assert len(seen) == 1
        for _ in range(3):
            latents.keys_values(attention)
        assert len(seen) == 4


def test_outside_a_call_nothing_is_attended_also_after_an_error():
    media = Media(ImageLatents(torch.randn(1, LATENTS, VISUAL_WIDTH)), row_of(0, length=3), IMAGE_ID)
    with pytest.raises(KeyError), conditioned(media):
        raise KeyError
    assert attended_media(1) is None


def test_inputs_embeds_are_refused_where_images_must_be_found(build_tiny):
    model, _, tokenizer = build_tiny()
    ids = encode(tokenizer, "<image>A cat")["lang_x"]
    model.cache_media(ids, random_images(1, 1))
    embeddings = model.lang_encoder.get_input_embeddings()(ids)
    with conditioned(model._cached_media), pytest.raises(ValueError, match="found by its input_ids"):
        model.lang_encoder(inputs_embeds=embeddings)
