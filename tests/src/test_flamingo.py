"""The whole model on tiny random parts: what its output depends on, and for how long a call conditions it."""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from threading import Barrier

import pytest
import torch
from tiny import EXACT, FLOATS, PROMPTS, encode, inputs_seen, random_images, real_images_of_prompts
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from open_flamingo import Flamingo

EOS = 0


@pytest.fixture(scope="module")
def tiny(build_tiny):
    """A model that no test changes, and its tokenizer."""
    model, _, tokenizer = build_tiny()
    return model, tokenizer


@pytest.fixture
def batch(tiny) -> dict[str, Tensor]:
    """PROMPTS with images in three slots each."""
    _, tokenizer = tiny
    return {"vision_x": random_images(len(PROMPTS), 3), **encode(tokenizer, *PROMPTS)}


def logits(model: Flamingo, vision_x: Tensor | None, lang_x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model(vision_x, lang_x, attention_mask).logits


def logits_of_lm(model: Flamingo, input_ids: Tensor) -> Tensor:
    """Of the language model itself, outside a call of Flamingo."""
    with torch.no_grad():
        return model.lang_encoder(input_ids=input_ids).logits


def gradients(model: Flamingo) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_with_zero_gates_the_logits_are_those_of_the_bare_language_model(build_tiny, tiny_lm, batch):
    model, _, tokenizer = build_tiny(gates=0)
    bare = AutoModelForCausalLM.from_pretrained(tiny_lm).eval()
    bare.resize_token_embeddings(len(tokenizer))
    bare.load_state_dict({"model.embed_tokens.weight": model.lang_encoder.get_input_embeddings().weight}, strict=False)
    with torch.no_grad():
        expected = bare(input_ids=batch["lang_x"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(logits(model, **batch), expected, **EXACT)


def test_text_before_the_first_image_ignores_images_and_later_text_does_not(tiny, batch):
    model, _ = tiny
    difference = logits(model, **batch) - logits(model, **{**batch, "vision_x": random_images(len(PROMPTS), 3, seed=1)})
    after_image = (batch["lang_x"] == model.media_token_id).cumsum(dim=1) > 0
    largest = difference.abs().amax(dim=-1)
    torch.testing.assert_close(largest[~after_image], torch.zeros_like(largest[~after_image]), **EXACT)
    assert (largest[after_image & batch["attention_mask"].bool()] > 1e-3).all()


@pytest.mark.parametrize("only_immediate", [True, False])
def test_slots_without_an_image_token_change_nothing(build_tiny, batch, only_immediate):
    model, _, _ = build_tiny(only_attend_immediate_media=only_immediate)
    expected = logits(model, **batch)
    padded = torch.full((len(PROMPTS), 5, 1, 3, 32, 32), float("nan"))
    for row, (images, text) in enumerate(zip(batch["vision_x"], PROMPTS, strict=True)):
        count = text.count("<image>")
        padded[row, :count] = images[:count]
    assert expected.isfinite().all()
    torch.testing.assert_close(logits(model, **{**batch, "vision_x": padded}), expected, **EXACT)


def test_real_images_alone_give_the_logits_of_padded_slots(tiny, batch):
    model, _ = tiny
    flat = real_images_of_prompts(batch["vision_x"])
    torch.testing.assert_close(logits(model, **{**batch, "vision_x": flat}), logits(model, **batch), **EXACT)


def test_each_real_image_is_encoded_once(tiny, batch):
    model, _ = tiny
    with inputs_seen([model.vision_encoder.conv1]) as seen:
        logits(model, **batch)
    torch.testing.assert_close(torch.cat(seen), real_images_of_prompts(batch["vision_x"]).squeeze(1), **EXACT)


def test_left_padding_changes_nothing(tiny, batch):
    model, tokenizer = tiny
    left = encode(tokenizer, *PROMPTS, side="left")
    expected = logits(model, **batch)[batch["attention_mask"].bool()]
    actual = logits(model, batch["vision_x"], **left)[left["attention_mask"].bool()]
    torch.testing.assert_close(actual, expected, **FLOATS)


def test_a_batch_gives_the_logits_of_its_samples_alone(tiny, batch):
    model, tokenizer = tiny
    together = logits(model, **batch)
    for row, text in enumerate(PROMPTS):
        alone = logits(model, batch["vision_x"][row : row + 1], **encode(tokenizer, text))
        torch.testing.assert_close(together[row : row + 1, : alone.shape[1]], alone, **FLOATS)


def test_the_loss_of_supervised_tokens_is_that_of_all_logits(tiny, batch):
    model, _ = tiny
    supervised = torch.rand(batch["lang_x"].shape, generator=torch.Generator().manual_seed(0)) < 0.3
    with torch.no_grad():
        out = model(**batch, supervised=supervised)
    predicting, targets = logits(model, **batch)[:, :-1][supervised[:, 1:]], batch["lang_x"][:, 1:][supervised[:, 1:]]
    expected = nn.functional.cross_entropy(predicting, targets, reduction="none")
    torch.testing.assert_close(out.losses, expected)
    torch.testing.assert_close(out.total, expected.sum())
    assert torch.equal(out.predictions, predicting.argmax(dim=-1))


class TestCachedMedia:
    """`cache_media` keeps the images of a prompt for calls without images."""

    def test_forward_without_images_equals_the_direct_forward(self, build_tiny, batch):
        model, _, _ = build_tiny()
        expected = logits(model, **batch)
        model.cache_media(batch["lang_x"], batch["vision_x"])
        torch.testing.assert_close(logits(model, **{**batch, "vision_x": None}), expected, **EXACT)

    @pytest.mark.parametrize(
        ("prompt", "continuation"),
        [
            ("<image>Two cats<image>What is this?", " A dog on the beach"),
            ("Compare <image>with", " <image>the second picture"),
            ("A chat", " between people <image>on the bridge"),
        ],
    )
    def test_scoring_a_continuation_with_a_kv_cache_equals_the_full_forward(self, build_tiny, prompt, continuation):
        model, _, tokenizer = build_tiny()
        ids = [encode(tokenizer, text)["lang_x"] for text in (prompt, continuation)]
        whole = torch.cat(ids, dim=1)
        images = random_images(1, int((whole == model.media_token_id).sum()))
        expected = logits(model, images, whole)
        with torch.no_grad():
            first = model(images[:, : prompt.count("<image>")], ids[0], use_cache=True)
            model.cache_media(whole, images)
            second = model(None, ids[1], past_key_values=first.past_key_values)
        actual = torch.cat((first.logits, second.logits), dim=1)
        torch.testing.assert_close(actual, expected, **FLOATS)

    def test_many_continuations_of_one_prompt_are_scored_as_in_full(self, build_tiny):
        model, _, tokenizer = build_tiny()
        images = random_images(1, 2)
        prompt = encode(tokenizer, "<image>Two cats<image>What is this?")["lang_x"]
        model.cache_media(prompt, images)
        for text in (" A dog", " The red blanket in the sun", " A child"):
            continuation = encode(tokenizer, text)["lang_x"]
            with torch.no_grad():
                past = model(None, prompt, use_cache=True).past_key_values
                actual = model(None, continuation, past_key_values=past).logits
            fresh, _, _ = build_tiny()
            expected = logits(fresh, images, torch.cat((prompt, continuation), dim=1))
            torch.testing.assert_close(actual, expected[:, prompt.shape[1] :], **FLOATS)

    def test_clear_conditioned_layers_false_keeps_the_images_too(self, build_tiny, batch):
        model, _, _ = build_tiny()
        with torch.no_grad():
            expected = model(**batch, clear_conditioned_layers=False).logits
        torch.testing.assert_close(logits(model, **{**batch, "vision_x": None}), expected, **EXACT)

    def test_images_are_encoded_no_more(self, build_tiny, batch):
        model, _, _ = build_tiny()
        model.cache_media(batch["lang_x"], batch["vision_x"])
        with inputs_seen([model.vision_encoder.conv1]) as seen:
            logits(model, **{**batch, "vision_x": None})
        assert not seen

    def test_new_images_are_refused_until_uncached(self, build_tiny, batch):
        model, _, _ = build_tiny()
        expected = logits(model, **batch)
        model.cache_media(batch["lang_x"], batch["vision_x"])
        with pytest.raises(ValueError, match=r"images are cached: .*uncache_media"):
            logits(model, **batch)
        model.uncache_media()
        torch.testing.assert_close(logits(model, **batch), expected, **EXACT)

    def test_uncache_media_restores_the_refusal_of_image_tokens_without_images(self, build_tiny, batch):
        model, _, _ = build_tiny()
        model.cache_media(batch["lang_x"], batch["vision_x"])
        model.uncache_media()
        with pytest.raises(ValueError, match="no images were given"):
            logits(model, None, batch["lang_x"])


class TestConditioningEndsWithTheCall:
    """Nothing of one call reaches the next, or another thread."""

    @pytest.mark.parametrize("call", ["forward", "generate"])
    def test_also_when_the_language_model_raises(self, build_tiny, batch, call):
        model, _, _ = build_tiny()
        without_images, with_images = logits_of_lm(model, batch["lang_x"]), logits(model, **batch)

        def fail(*_):
            raise RuntimeError("out of memory")

        handle = model.lang_encoder.model.layers[2].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            getattr(model, call)(**batch)
        handle.remove()
        torch.testing.assert_close(logits_of_lm(model, batch["lang_x"]), without_images, **EXACT)
        torch.testing.assert_close(logits(model, **batch), with_images, **EXACT)

    def test_text_alone_gives_the_logits_of_a_fresh_model_after_a_call_with_images(self, build_tiny, batch):
        model, _, tokenizer = build_tiny()
        text = encode(tokenizer, "A chat between people")
        logits(model, **batch)
        fresh, _, _ = build_tiny()
        torch.testing.assert_close(logits(model, None, **text), logits(fresh, None, **text), **EXACT)
        torch.testing.assert_close(logits_of_lm(model, text["lang_x"]), logits(fresh, None, **text), **EXACT)

    @pytest.mark.parametrize("call", ["forward", "generate"])
    def test_two_threads_with_different_images_do_not_mix(self, build_tiny, call):
        model, _, tokenizer = build_tiny()
        texts = [encode(tokenizer, "<image>What is <image>it?"), encode(tokenizer, "Two cats <image> sleep in the sun")]
        images = [random_images(1, 2, seed=1), random_images(1, 1, seed=2)]

        @torch.no_grad()
        def run(vision_x: Tensor, text: dict[str, Tensor]) -> Tensor:
            if call == "forward":
                return model(vision_x, **text).logits
            return model.generate(vision_x, **text, max_new_tokens=4, min_new_tokens=4, pad_token_id=EOS)

        in_turn = [run(*pair) for pair in zip(images, texts, strict=True)]
        barrier = Barrier(2, timeout=30)

        def meet(*_):
            barrier.wait()

        for layer in model.lang_encoder.model.layers:
            layer.register_forward_pre_hook(meet)
        with ThreadPoolExecutor(2) as pool:
            for _ in range(5):
                for actual, expected in zip(pool.map(run, images, texts), in_turn, strict=True):
                    torch.testing.assert_close(actual, expected, **FLOATS)


class TestTraining:
    """Gradients reach what trains, whatever the batch holds."""

    @pytest.mark.parametrize("only_immediate", [True, False])
    @pytest.mark.parametrize("shape", [(0, 1, 3, 32, 32), (1, 2, 1, 3, 32, 32)])
    def test_text_without_images_gives_every_trained_parameter_a_gradient(self, build_tiny, shape, only_immediate):
        model, _, tokenizer = build_tiny(only_attend_immediate_media=only_immediate)
        ids = encode(tokenizer, "A chat between people")["lang_x"]
        out = model(torch.zeros(shape), ids, labels=ids)
        out.loss.backward()
        torch.testing.assert_close(out.logits.detach(), logits(model, None, ids), **EXACT)
        assert [name for name, gradient in gradients(model).items() if gradient is None] == []
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)

    def test_images_give_every_resampler_and_block_parameter_a_gradient_that_is_not_zero(self, build_tiny, batch):
        model, _, _ = build_tiny()
        model(**batch, labels=batch["lang_x"]).loss.backward()
        assert [name for name, gradient in gradients(model).items() if not gradient.any()] == []

    def test_gradient_checkpointing_gives_the_same_loss_and_gradients(self, build_tiny, batch):
        plain = build_tiny()[0].train()
        frugal = deepcopy(plain)
        frugal.gradient_checkpointing_enable()
        losses = []
        for model in (plain, frugal):
            out = model(**batch, labels=batch["lang_x"])
            out.loss.backward()
            losses.append(out.loss.detach())
        torch.testing.assert_close(losses[1], losses[0], **EXACT)
        torch.testing.assert_close(gradients(frugal), gradients(plain))

    def test_gradient_checkpointing_runs_each_block_once_more_in_the_backward_pass(self, build_tiny, batch):
        model = build_tiny()[0].train()
        model.gradient_checkpointing_enable()
        blocks = model.gated_cross_attn_layers
        with inputs_seen(block.attn.to_q for block in blocks) as seen:
            loss = model(**batch, labels=batch["lang_x"]).loss
            assert len(seen) == len(blocks)
            loss.backward()
        assert len(seen) == 2 * len(blocks)


def test_a_deep_copy_gives_the_same_logits_and_stays_as_it_was(build_tiny, batch):
    model, _, _ = build_tiny()
    expected = logits(model, **batch)
    copied = deepcopy(model)
    for p in model.parameters():
        p.data.zero_()
    torch.testing.assert_close(logits(copied, **batch), expected, **EXACT)


def test_a_saved_state_dict_gives_another_model_the_same_logits(build_tiny, batch, tmp_path):
    model, _, _ = build_tiny()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other, _, _ = build_tiny(seed=1)
    assert not torch.equal(logits(other, **batch), logits(model, **batch))
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    torch.testing.assert_close(logits(other, **batch), logits(model, **batch), **EXACT)


def test_only_the_tied_head_shares_its_storage_in_the_state_dict(tiny):
    model, _ = tiny
    names = defaultdict(list)
    for name, tensor in model.state_dict().items():
        names[tensor.data_ptr()].append(name)
    shared = [group for group in names.values() if len(group) > 1]
    assert shared == [["lang_encoder.model.embed_tokens.weight", "lang_encoder.lm_head.weight"]]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 2, 1, 3, 32, 32), "sample 1 has 3 <image> tokens but only 2 images"),
        ((3, 1, 3, 32, 32), "3 images were given for 4 <image> tokens"),
        ((5, 1, 3, 32, 32), "5 images were given for 4 <image> tokens"),
        ((3, 3, 1, 3, 32, 32), r"vision_x must be \(b, T, F, C, H, W\) with b = 2"),
        ((4, 3, 32, 32), r"vision_x must be \(b, T, F, C, H, W\)"),
    ],
)
@pytest.mark.parametrize("call", ["forward", "generate"])
def test_images_that_do_not_fit_the_text_are_refused(tiny, call, shape, message):
    model, tokenizer = tiny
    text = encode(tokenizer, "<image>A cat", "<image><image><image>Three")
    with pytest.raises(ValueError, match=message):
        getattr(model, call)(torch.zeros(shape), **text)


@pytest.mark.parametrize("call", ["forward", "generate"])
def test_image_tokens_without_images_are_refused(tiny, call):
    model, tokenizer = tiny
    with pytest.raises(ValueError, match="the text holds <image> tokens, but no images were given"):
        getattr(model, call)(None, **encode(tokenizer, "<image>A cat"))


def test_real_images_for_text_without_image_tokens_are_refused(tiny):
    model, tokenizer = tiny
    with pytest.raises(ValueError, match="1 images were given for 0 <image> tokens"):
        model(torch.zeros(1, 1, 3, 32, 32), **encode(tokenizer, "A cat"))
