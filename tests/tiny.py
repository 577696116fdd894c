"""What tests of tiny models share: a tokenizer, prompts, random images, and a count of what passes through a module."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
SENTENCES = (
    "A chat between a curious human and an assistant that can see pictures.",
    "### Human: What is in this picture? ### Assistant: Two cats sleep on a red blanket in the sun.",
    "An image of a dog that runs along the beach, with a ball and another dog behind it.",
    "How many people are on the bridge? There are three people and one child on the bridge.",
    "Describe the first picture, then compare it with the second picture, please.",
)
PROMPTS = (
    "First a word. <image>A cat<image>on the bridge",
    "<image>What is in this picture?",
    "No picture here",
    "<image><image><image>Compare the three pictures, please.",
)
"""Texts with 2, 1, 0 and 3 images."""
IMAGES_OF_PROMPTS = (2, 1, 0, 3)
FLOATS = {"rtol": 1e-4, "atol": 1e-4}
"""The same sums in another order; logits of the tiny models have a standard deviation above one."""
EXACT = {"rtol": 0, "atol": 0}


def byte_level_tokenizer(size: int = 400) -> PreTrainedTokenizerBase:
    """A byte-level BPE of at most `size` entries with an end of text, but no padding and no start token."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=size, special_tokens=[END_OF_TEXT], initial_alphabet=ByteLevel.alphabet())
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT)


def random_images(b: int, T: int, seed: int = 0) -> Tensor:
    """Images (b, T, 1, 3, 32, 32) that depend on `seed` alone."""
    return torch.randn(b, T, 1, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def encode(tokenizer: PreTrainedTokenizerBase, *texts: str, side: str = "right") -> dict[str, Tensor]:
    """`lang_x` and `attention_mask` (b, t) of `texts`, padded at `side`."""
    batch = tokenizer(list(texts), return_tensors="pt", padding=True, padding_side=side)
    return {"lang_x": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def real_images_of_prompts(images: Tensor) -> Tensor:
    """The images of PROMPTS (N, 1, 3, 32, 32) among the padded slots of `images`."""
    return torch.cat([row[:count] for row, count in zip(images, IMAGES_OF_PROMPTS, strict=True)])


@contextmanager
def inputs_seen(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """The first argument of every call of `modules`, collected while the context lasts."""
    seen: list[Tensor] = []
    with ExitStack() as stack:
        for module in modules:
            handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
            stack.callback(handle.remove)
        yield seen


@contextmanager
def favoured(head: nn.Module, token: int) -> Iterator[None]:
    """An output head that puts `token` far above every other."""
    boost = nn.functional.one_hot(torch.tensor(token), head.out_features) * 1e4
    handle = head.register_forward_hook(lambda _module, _args, logits: logits + boost)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def no_tensor_becomes_garbage() -> Iterator[None]:
    """Every tensor that goes, goes at once: none is left in a cycle until Python collects garbage."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
        gc.collect()
        left = [tuple(item.shape) for item in gc.garbage if isinstance(item, Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left, left
