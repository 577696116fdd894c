"""Datasets to batches: the same bytes however many workers and ranks there are, and nothing unusable on the way."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import EXACT
from torch import Tensor
from toy import golden_tokenizer, small_tensor, write_json_file
from transformers import PreTrainedTokenizerBase

from instruction_dataset.records import Record, image_tag
from instruction_dataset.store import open_records
from open_flamingo.instruction_tuning.data import images as images_module
from open_flamingo.instruction_tuning.data.batches import Batch, batches
from open_flamingo.instruction_tuning.data.conversation import TurnTokenizer
from open_flamingo.instruction_tuning.data.formats import Dataset
from open_flamingo.instruction_tuning.data.images import open_image
from open_flamingo.instruction_tuning.data.loader import InstructionData
from open_flamingo.instruction_tuning.data.summary import mixture_table
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

    def build(
        *records: Record, further: int = 2, tokenizer: PreTrainedTokenizerBase = tokenizer, **options: Any
    ) -> InstructionData:
        path = write_json_file(gallery / "gallery.json", [vars_of(record) for record in records])
        dataset = Dataset("gallery", open_records(path), str(gallery))
        turns = TurnTokenizer(tokenizer, tokenizer.convert_tokens_to_ids(MEDIA_TOKEN), "guanaco-no-prompt")
        settings = {"max_length": 120, "max_img": 3, "multiturn_augmentation": further, "seed": 3, **options}
        return InstructionData([dataset], turns, small_tensor, **settings)

    return build


def vars_of(record: Record) -> dict[str, str]:
    """A record as it is written."""
    return {"input": record.input, "output": record.output}


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


@pytest.mark.parametrize("workers", [1, 4])
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
    assert list(cut.pool) == list(whole.pool)[:5]


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


def test_records_that_cannot_be_trained_on_are_left_out_and_counted(build):
    data = build(asking(0), OVERLONG, asking(1), asking(0, 1, 2, 3), asking(2))
    data.check()
    assert [usable.tolist() for usable in data.usable] == [[0, 2, 4]]
    _, line = mixture_table(data, data.counts(6, "ratio")).splitlines()
    assert line.split()[:6] == ["gallery", "(input/output)", "5", "6", "100.0%", "2.00"]
    assert line.endswith("1 too long for 120 tokens, 1 more than 3 images")
    assert sorted(record for _, record in epoch(data).pool) == [0, 2, 4]


def test_a_missing_image_is_found_before_training_with_its_record(build, gallery):
    data = build(asking(0), asking(1, 7))
    with pytest.raises(ValueError, match=r"gallery\.json, record 2: image .*7\.png does not exist") as refusal:
        data.check()
    assert str(gallery) in str(refusal.value)


def test_an_image_whose_name_no_system_takes_is_found_with_its_record(build):
    with pytest.raises(ValueError, match=r"gallery\.json, record 1: image .* does not exist"):
        build(Record(image_tag("a" * 5000) + "What?", "A cat.")).check()


def test_an_image_that_breaks_after_the_check_is_named_with_its_record(build, gallery):
    (gallery / "broken.png").write_bytes((gallery / "3.png").read_bytes()[:100])
    broken = Record(f"{image_tag('broken.png')}What?", "Nothing.")
    data = build(asking(0), broken, further=8)
    data.check()
    with pytest.raises(ValueError, match=r"gallery\.json, record 2: image .*broken\.png cannot be read") as refusal:
        [epoch(data)[i] for i in range(2)]
    assert "\n" not in str(refusal.value)


def test_an_unclosed_tag_is_found_before_training_with_its_record(build):
    with pytest.raises(ValueError, match=r"gallery\.json, record 2: an image tag is not closed"):
        build(asking(0), Record("<img_path>0.png What is this?", "A cat."))


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


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("done", [1, 2])
def test_a_run_that_goes_on_in_mid_epoch_sees_what_was_left_byte_for_byte(data, done, workers):
    whole = [vars(b) for b in batches(epoch(data), batch_size=2, rank=1, world_size=2)]
    rest = [vars(b) for b in batches(epoch(data), batch_size=2, rank=1, world_size=2, done=done, workers=workers)]
    assert len(rest) == len(whole) - done
    torch.testing.assert_close(rest, whole[done:], **EXACT)


def test_packing_to_fit_cuts_no_answer(build):
    words = "word " * 20
    records = [Record(f"{i} {words[: 5 * i]}", f"Answer {i}.") for i in range(1, 15)]
    data = build(*records, further=12, packing="fit")
    data.check()
    samples = [epoch(data).conversation(i) for i in range(len(epoch(data)))]
    eos = data.tokenizer.tokenizer.eos_token_id
    assert {sample.ids[-1] for sample in samples} == {eos}
    filled = sum(len(sample.ids) for sample in samples) / (len(samples) * data.max_length)
    assert filled > 0.97


def test_packing_to_fit_leaves_out_a_record_whose_answer_would_be_cut(build):
    long_answer = Record("Say a lot.", "word " * 200)
    fill, fit = (build(asking(0), long_answer, packing=packing) for packing in ("fill", "fit"))
    for data in (fill, fit):
        data.check()
    assert [len(data.usable[0]) for data in (fill, fit)] == [2, 1]


def test_an_image_that_comes_up_twice_in_a_sample_is_decoded_once(build, monkeypatch):
    opened = []
    monkeypatch.setattr(images_module, "open_image", lambda path: opened.append(path) or open_image(path))
    data = build(asking(2, 2), further=0)
    assert len(epoch(data)[0].images) == 2
    assert [path.name for path in opened] == ["2.png"]


def test_a_dialogue_is_one_sample_with_a_loss_on_each_answer(gallery, tokenizer):
    said = [("user", "What is this?"), ("assistant", "A cat."), ("user", "And that?"), ("assistant", "A dog.")]
    path = write_json_file(gallery / "talk.json", [{"messages": [{"role": r, "content": c} for r, c in said]}])
    turns = TurnTokenizer(tokenizer, tokenizer.convert_tokens_to_ids(MEDIA_TOKEN), "guanaco-no-prompt")
    limits = {"max_length": 200, "max_img": 3, "multiturn_augmentation": 0, "seed": 3}
    data = InstructionData([Dataset("talk", open_records(path))], turns, small_tensor, **limits)
    sample = epoch(data).conversation(0)
    text = "### Human: What is this?\n### Assistant: A cat.<|endoftext|>\n### Human: And that?\n### Assistant: A dog.<|endoftext|>"
    assert tokenizer.decode(sample.ids) == text
    learnt = [token for token, is_learnt in zip(sample.ids, sample.supervised, strict=True) if is_learnt]
    assert tokenizer.decode(learnt) == "A cat.<|endoftext|>A dog.<|endoftext|>"
