"""Generation with images: the cache, padding, batching and beams change nothing, and `<image>` is never generated."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import (
    IMAGES_OF_PROMPTS,
    PROMPTS,
    encode,
    favoured,
    inputs_seen,
    no_tensor_becomes_garbage,
    random_images,
    real_images_of_prompts,
)
from torch import Tensor

from open_flamingo import Flamingo

GOLDENS = Path(__file__).parents[1] / "goldens"
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def tiny(build_tiny):
    """A model that no test changes, and its tokenizer."""
    model, _, tokenizer = build_tiny(every=2)
    return model, tokenizer


@pytest.fixture(scope="module")
def batch(tiny) -> dict[str, Tensor]:
    """PROMPTS padded on the left, with images in three slots each."""
    _, tokenizer = tiny
    return {"vision_x": random_images(len(PROMPTS), 3), **encode(tokenizer, *PROMPTS, side="left")}


def new_ids(model: Flamingo, vision_x: Tensor | None, lang_x: Tensor, attention_mask: Tensor, **kwargs) -> list:
    """The ids that continue each prompt, NEW_TOKENS of them unless told otherwise, without sampling."""
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "pad_token_id": 0, "do_sample": False}
    ids = model.generate(vision_x, lang_x, attention_mask, **{**settings, **kwargs})
    return ids[:, lang_x.shape[1] :].tolist()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    "caching", [{"use_cache": True}, {"cache_implementation": "static"}, {"prefill_chunk_size": 4}], ids=str
)
def test_generation_with_a_cache_equals_generation_without(tiny, batch, beams, caching):
    model, _ = tiny
    expected = new_ids(model, **batch, num_beams=beams, use_cache=False)
    assert new_ids(model, **batch, num_beams=beams, **caching) == expected


@pytest.mark.parametrize("only_immediate", [True, False])
@pytest.mark.parametrize("beams", [1, 3])
def test_what_a_generation_needed_goes_with_it(build_tiny, batch, beams, only_immediate):
    model, _, _ = build_tiny(only_attend_immediate_media=only_immediate)
    with no_tensor_becomes_garbage():
        new_ids(model, **batch, num_beams=beams)


@pytest.mark.parametrize("only_immediate", [True, False])
def test_generated_ids_depend_on_the_images_of_their_own_sample(build_tiny, batch, only_immediate):
    model, _, _ = build_tiny(only_attend_immediate_media=only_immediate)
    length = {"max_new_tokens": 16, "min_new_tokens": 16}
    first = new_ids(model, **batch, **length)
    second = new_ids(model, **{**batch, "vision_x": random_images(len(PROMPTS), 3, seed=1)}, **length)
    assert [a != b for a, b in zip(first, second, strict=True)] == [count > 0 for count in IMAGES_OF_PROMPTS]


@pytest.mark.parametrize("only_immediate", [True, False])
def test_without_a_cache_both_masks_generate_as_with_one(build_tiny, batch, only_immediate):
    model, _, _ = build_tiny(only_attend_immediate_media=only_immediate)
    assert new_ids(model, **batch) == new_ids(model, **batch, use_cache=False)


@pytest.mark.parametrize("beams", [1, 3])
def test_left_padding_changes_nothing(tiny, batch, beams):
    model, tokenizer = tiny
    padding = torch.full((len(PROMPTS), 7), tokenizer.pad_token_id)
    wider = {
        "vision_x": batch["vision_x"],
        "lang_x": torch.cat((padding, batch["lang_x"]), dim=1),
        "attention_mask": torch.cat((torch.zeros_like(padding), batch["attention_mask"]), dim=1),
    }
    assert new_ids(model, **wider, num_beams=beams) == new_ids(model, **batch, num_beams=beams)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_a_batch_generates_what_its_samples_generate_alone(tiny, batch, search):
    model, tokenizer = tiny
    alone = []
    for images, text in zip(batch["vision_x"], PROMPTS, strict=True):
        alone += new_ids(model, images[None], **encode(tokenizer, text), **search)
    assert new_ids(model, **batch, **search) == alone


def test_sampling_two_sequences_of_each_sample_gives_each_its_own_images(tiny, batch):
    model, _ = tiny
    ids = new_ids(model, **batch, do_sample=True, top_k=1, num_return_sequences=2)
    assert ids == [row for row in new_ids(model, **batch) for _ in range(2)]


def test_real_images_alone_generate_what_padded_slots_do(tiny, batch):
    model, _ = tiny
    flat = real_images_of_prompts(batch["vision_x"])
    assert new_ids(model, **{**batch, "vision_x": flat}) == new_ids(model, **batch)


def test_images_of_cache_media_generate_what_given_images_do(build_tiny, batch):
    model, _, _ = build_tiny()
    expected = new_ids(model, **batch)
    model.cache_media(batch["lang_x"], batch["vision_x"])
    assert new_ids(model, **{**batch, "vision_x": None}) == expected


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"do_sample": True}, {"use_cache": False}], ids=str)
def test_the_image_token_is_never_generated(tiny, batch, search):
    model, _ = tiny
    with favoured(model.lang_encoder.get_output_embeddings(), model.media_token_id):
        with torch.no_grad():
            assert (model(**batch).logits.argmax(dim=-1) == model.media_token_id).all()
        ids = new_ids(model, **batch, **search)
    assert model.media_token_id not in {token for row in ids for token in row}


def test_tokens_that_the_caller_suppresses_are_not_generated_either(tiny, batch):
    model, _ = tiny
    favourites = sorted({row[0] for row in new_ids(model, **batch)})
    ids = new_ids(model, **batch, suppress_tokens=favourites)
    assert not {*favourites, model.media_token_id} & {token for row in ids for token in row}


def test_generation_stops_at_the_end_of_chunk_unless_told_another_end(tiny, batch):
    model, tokenizer = tiny
    end = model.eoc_token_id
    with favoured(model.lang_encoder.get_output_embeddings(), end):
        assert new_ids(model, **batch, min_new_tokens=0) == [[end]] * len(PROMPTS)
        ids = new_ids(model, **batch, min_new_tokens=0, eos_token_id=tokenizer.eos_token_id)
        assert ids == [[end] * NEW_TOKENS] * len(PROMPTS)


def test_each_real_image_is_encoded_once_however_many_beams(tiny, batch):
    model, _ = tiny
    with inputs_seen([model.vision_encoder.conv1]) as seen:
        new_ids(model, **batch, num_beams=3)
    assert [len(images) for images in seen] == [sum(IMAGES_OF_PROMPTS)]


@pytest.mark.parametrize("use_cache", [True, False])
def test_keys_and_values_of_the_images_are_computed_once_per_layer(tiny, batch, use_cache):
    model, _ = tiny
    projections = [block.attn.to_kv for block in model.gated_cross_attn_layers]
    with inputs_seen(projections) as seen:
        new_ids(model, **batch, num_beams=3, use_cache=use_cache)
    assert [len(latents) for latents in seen] == [sum(IMAGES_OF_PROMPTS)] * len(projections)


def test_the_few_shot_example_of_open_flamingo_runs_as_written(build_tiny):
    model, image_processor, tokenizer = build_tiny()
    demo_image_one, demo_image_two, query_image = (Image.new("RGB", (48, 40), c) for c in ("red", "green", "blue"))

    vision_x = [
        image_processor(demo_image_one).unsqueeze(0),
        image_processor(demo_image_two).unsqueeze(0),
        image_processor(query_image).unsqueeze(0),
    ]
    vision_x = torch.cat(vision_x, dim=0)
    vision_x = vision_x.unsqueeze(1).unsqueeze(0)
    tokenizer.padding_side = "left"
    lang_x = tokenizer(
        ["<image>Two cats.<|endofchunk|><image>A red blanket.<|endofchunk|><image>An image of"], return_tensors="pt"
    )
    generated_text = model.generate(
        vision_x=vision_x,
        lang_x=lang_x["input_ids"],
        attention_mask=lang_x["attention_mask"],
        max_new_tokens=20,
        num_beams=3,
    )

    prompt = tokenizer.decode(lang_x["input_ids"][0])
    assert tokenizer.decode(generated_text[0]).startswith(prompt)
    assert lang_x["input_ids"].shape[1] < generated_text.shape[1] <= lang_x["input_ids"].shape[1] + 20


def test_every_family_generates_with_a_cache_unless_told_not_to(build_tiny):
    model, _, tokenizer = build_tiny(lm=GOLDENS / "mpt" / "lm")
    assert not model.lang_encoder.generation_config.use_cache  # as transformers has it for MPT
    prompt = encode(tokenizer, "No picture here")
    for use_cache, length in ((None, 1), (False, prompt["lang_x"].shape[1] + 2)):
        settings = {} if use_cache is None else {"use_cache": use_cache}
        with inputs_seen([model.lang_encoder.get_input_embeddings()]) as ids:
            model.generate(None, **prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False, **settings)
        assert ids[-1].shape[1] == length
