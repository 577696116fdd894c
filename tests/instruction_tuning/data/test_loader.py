"""Datasets to batches: the same bytes however many workers and ranks there are, and nothing unusable on the way."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import EXACT
from torch import Tensor
from toy import golden_tokenizer, small_tensor
from transformers import PreTrainedTokenizerBase

from instruction_dataset.records import Record, image_tag
from open_flamingo.instruction_tuning.data.conversation import TurnTokenizer
from open_flamingo.instruction_tuning.data.formats import Dataset
from open_flamingo.instruction_tuning.data.loader import Batch, InstructionData, batches
from open_flamingo.src.factory import MEDIA_TOKEN

PICTURES = 6
OVERLONG = Record("word " * 200, "Too long.")


def asking(*pictures: int) -> Record:
    """A record about pictures by their numbers."""
    return Record("".join(image_tag(f"{n}.png") for n in pictures) + "What is this?", f"Picture {pictures}.")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """A folder of random pictures of several shapes."""
    folder = tmp_path_factory.mktemp("gallery")
    rng = np.random.default_rng(0)
    for n in range(PICTURES):
        pixels = rng.integers(0, 256, (10 + n, 20 - n, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return golden_tokenizer()


@pytest.fixture(scope="module")
def build(gallery, tokenizer):
    """Builds the data of one dataset from its records."""

    def build(*records: Record, further: int = 2, tokenizer: PreTrainedTokenizerBase = tokenizer) -> InstructionData:
        dataset = Dataset("gallery", gallery / "gallery.json", list(records), str(gallery))
        turns = TurnTokenizer(tokenizer, tokenizer.convert_tokens_to_ids(MEDIA_TOKEN), "guanaco-no-prompt")
        limits = {"max_length": 120, "max_img": 3}
        return InstructionData([dataset], turns, small_tensor, multiturn_augmentation=further, seed=3, **limits)

    return build


@pytest.fixture(scope="module")
def data(build) -> InstructionData:
    """Records with none, one and two pictures."""
    singles = [asking(n) for n in range(PICTURES)]
    return build(*singles, asking(0, 5), asking(4, 1), *(Record(f"What is {n}?", "A number.") for n in range(4)))


def epoch(data: InstructionData, number: int = 0, total: int = -1):
    """One epoch of a single dataset."""
    return data.epoch(number, total, "ratio")


def contents(loaded: list[Batch]) -> list[tuple[list[int], list[bool]]]:
    """Ids and mask of each sample of some batches, without padding."""
    return [
        (ids[real.bool()].tolist(), supervised[real.bool()].tolist())
        for batch in loaded
        for ids, supervised, real in zip(batch.input_ids, batch.supervised, batch.attention_mask, strict=True)
    ]


def images(loaded: list[Batch]) -> Tensor:
    """The images of some batches, in order."""
    return torch.cat([batch.images for batch in loaded])


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(data, workers):
    alone, helped = ([vars(b) for b in batches(epoch(data), batch_size=4, workers=n)] for n in (0, workers))
    assert len(alone) == 3
    torch.testing.assert_close(helped, alone, **EXACT)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_ranks_see_together_what_one_rank_with_their_joint_batch_sees(data, world_size):
    size = 2
    ranks = [
        list(batches(epoch(data), batch_size=size, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    single = list(batches(epoch(data), batch_size=size * world_size))
    assert [len(loaded) for loaded in ranks] == [len(single)] * world_size
    for i, joint in enumerate(single):
        shares = [loaded[i] for loaded in ranks]
        assert contents(shares) == contents([joint])
        torch.testing.assert_close(images(shares), joint.images, **EXACT)


def test_each_epoch_draws_anew_and_the_same_epoch_draws_the_same(data):
    first, again, second = (contents(list(batches(epoch(data, n), batch_size=4))) for n in (0, 0, 1))
    assert first == again
    assert first != second


def test_the_same_record_is_augmented_anew_in_each_epoch_and_at_each_place(build):
    data = build(*[asking(0)] * 16, further=0)
    first, again, second = (images(list(batches(epoch(data, n), batch_size=16))) for n in (0, 0, 1))
    torch.testing.assert_close(first, again, **EXACT)
    assert not torch.equal(first, second)
    assert len(first.unique(dim=0)) > 2


def test_an_epoch_can_be_cut_to_its_first_records(data):
    whole, cut = data.epoch(0, -1, "ratio"), data.epoch(0, -1, "ratio", 5)
    assert cut.pool == whole.pool[:5]


def test_images_lie_in_reading_order_one_for_each_image_token(data):
    for batch in batches(epoch(data), batch_size=4):
        media = data.tokenizer.media_token_id
        assert len(batch.images) == int((batch.input_ids == media).sum())
        assert batch.images.shape[1:] == (1, 3, 8, 8)


def test_a_batch_without_images_has_images_of_length_zero(build):
    data = build(Record("What is one?", "A number."), Record("What is two?", "Another number."))
    (batch,) = batches(epoch(data), batch_size=2)
    assert batch.images.shape == (0, 1, 3, 8, 8)
    assert batch.images.dtype == torch.float32


def test_eos_is_supervised_and_attended_where_it_is_the_padding_token_too(build):
    tokenizer = golden_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    records = [Record("What is one?", "A number."), Record("What is a much longer question?", "No.")]
    data = build(*records, further=0, tokenizer=tokenizer)
    (batch,) = batches(epoch(data), batch_size=2)
    eos = batch.input_ids == tokenizer.eos_token_id
    assert int((eos & batch.supervised).sum()) == 2
    assert (eos & batch.supervised == eos & batch.attention_mask.bool()).all()
    assert int((eos & ~batch.supervised).sum()) == int((batch.attention_mask == 0).sum()) > 0


def test_records_that_cannot_be_trained_on_are_left_out_and_counted(build, caplog):
    data = build(asking(0), OVERLONG, asking(1), asking(0, 1, 2, 3), asking(2))
    data.check(quiet=True)
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "open_flamingo"):
        data.check()
    assert data.usable == [[0, 2, 4]]
    assert "gallery: 2 of 5 records are left out" in caplog.text
    assert sorted(record for _, record in epoch(data).pool) == [0, 2, 4]


def test_a_missing_image_is_found_before_training_with_its_record(build, gallery):
    data = build(asking(0), asking(1, 7))
    with pytest.raises(ValueError, match=r"gallery\.json, record 2: image .*7\.png does not exist") as refusal:
        data.check()
    assert str(gallery) in str(refusal.value)


def test_an_unclosed_tag_is_found_before_training_with_its_record(build):
    data = build(asking(0), Record("<img_path>0.png What is this?", "A cat."))
    with pytest.raises(ValueError, match=r"gallery\.json, record 2: an image tag is not closed"):
        data.check()


def test_without_the_check_an_overlong_record_is_replaced_by_another_always_the_same(build):
    data = build(asking(0), OVERLONG, asking(1), OVERLONG, asking(2), further=0)
    fitting = contents(list(batches(epoch(build(asking(0), asking(1), asking(2), further=0)), batch_size=1)))
    loaded = list(batches(epoch(data), batch_size=5))
    assert len(contents(loaded)) == 5
    assert {tuple(ids) for ids, _ in contents(loaded)} == {tuple(ids) for ids, _ in fitting}
    torch.testing.assert_close(
        [vars(b) for b in batches(epoch(data), batch_size=5, workers=2)], [vars(b) for b in loaded], **EXACT
    )


def test_an_epoch_of_overlong_records_alone_is_refused(build):
    with pytest.raises(ValueError, match="no record of this epoch fits --max_length 120"):
        epoch(build(OVERLONG, OVERLONG))[0]


def test_an_epoch_that_fills_no_batch_is_refused(data):
    with pytest.raises(ValueError, match=r"an epoch of 12 samples does not fill one batch of 16 .*lower --batch_size"):
        batches(epoch(data), batch_size=8, world_size=2)
