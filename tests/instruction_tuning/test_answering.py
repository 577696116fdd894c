"""Which records are answered together, and what becomes of those that cannot be answered."""

import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from toy import COLORS, TEXT_ONLY, as_flags, question, write_json_file, write_mixture

from instruction_dataset.records import image_tag
from open_flamingo.instruction_tuning.answering import form_batches, is_out_of_memory, seed_of
from open_flamingo.instruction_tuning.instruction_dataset_inference import main
from open_flamingo.instruction_tuning.results import held_alone

SUN = TEXT_ONLY[0]
LONG = {"input": "And so on, " * 20, "output": "An answer."}
MISSING = question("mauve")
UNCLOSED = {"input": "<img_path>red.png Which colour?", "output": "red"}
GOOD = [*(question(color) for color in COLORS), SUN]
lengths = st.lists(st.integers(1, 300), max_size=60)


@pytest.fixture(scope="module")
def flags(toy_run):
    """Greedy answers of the toy model."""
    return as_flags(
        checkpoint_paths=toy_run / "checkpoint_0.pt",
        do_sample=False,
        max_new_token=12,
        no_repeat_ngram_size=0,
        num_samples=-1,
        max_length=100,
        batch_size=16,
    )


def answer(flags, data, results, **changes):
    """The exit code, and the rows of each dataset."""
    code = main([*flags, *as_flags(instruction_path=data, results_dir=results, **changes)])
    folder = results / "checkpoint_0" / f"{data.stem}_-1"
    return code, {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def outputs(rows):
    return [row["output"] for row in rows]


@pytest.fixture
def forward_hook():
    """A function that has a hook called before each module's forward pass, until the test ends."""
    handles = []
    yield lambda hook: handles.append(register_module_forward_pre_hook(hook))
    for handle in handles:
        handle.remove()


def memory_for(rows, error=torch.OutOfMemoryError):
    """A hook that finds memory full where more than so many prompts come at once."""

    def check(module, args):
        if isinstance(module, nn.Embedding) and len(args[0]) > rows:
            raise error(f"[enforce fail] DefaultCPUAllocator: can't allocate memory: {len(args[0])} prompts")

    return check


# batches


@given(lengths, st.integers(1, 20), st.integers(0, 1000), st.integers(1, 100))
def test_every_prompt_is_in_one_batch_the_longest_first(lengths, size, tokens, new):
    batches = form_batches(lengths, size, tokens, new)
    order = [index for batch in batches for index in batch]
    assert sorted(order) == [*range(len(lengths))]
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)


@given(lengths, st.integers(1, 20), st.integers(0, 1000), st.integers(1, 100))
def test_a_batch_keeps_to_both_limits_and_could_hold_no_more(lengths, size, tokens, new):
    batches = form_batches(lengths, size, tokens, new)
    padded = [len(batch) * (lengths[batch[0]] + new) for batch in batches]
    for batch, its_tokens in zip(batches, padded):
        assert len(batch) == 1 or (len(batch) <= size and (not tokens or its_tokens <= tokens))
    for batch in batches[:-1]:
        one_more = (len(batch) + 1) * (lengths[batch[0]] + new)
        assert len(batch) == size or (tokens and one_more > tokens)


def test_a_seed_is_of_one_record_and_the_same_everywhere():
    seeds = {seed_of(seed, name, record) for seed in (1, 2) for name in ("a", "b") for record in range(50)}
    assert len(seeds) == 200
    assert seed_of(42, "digits", 7) == 34265602305984273


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 3}], ids=["greedy", "sampled"])
def test_answers_do_not_depend_on_their_batch(flags, pictures, tmp_path, sampling):
    data = write_json_file(tmp_path / "some.json", [*GOOD, question("red", "blue")])
    results = [
        answer(
            flags,
            data,
            tmp_path / f"{size}-{tokens}",
            img_dir=pictures,
            batch_size=size,
            max_batch_tokens=tokens,
            **sampling,
        )
        for size, tokens in ((16, 0), (1, 0), (16, 150))
    ]
    assert results[0] == results[1] == results[2]
    assert results[0][0] == 0


# records that cannot be answered

BAD = [
    (LONG, r"bad\.json, record 2: its prompt has \d+ tokens, more than --max_length 100"),
    (MISSING, r"bad\.json, record 2: image .*mauve\.png does not exist"),
    (UNCLOSED, r"bad\.json, record 2: an image tag is not closed"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=["long", "missing image", "tags"])
def test_a_record_that_cannot_be_answered_has_an_error_and_the_rest_is_done(
    flags, pictures, tmp_path, capsys, bad, message
):
    data = write_json_file(tmp_path / "bad.json", [GOOD[0], bad, *GOOD[1:]])
    code, rows = answer(flags, data, tmp_path / "results", img_dir=pictures)
    assert code == 1
    assert outputs(rows["bad"]) == ["red", "", "green", "blue", "A star."]
    assert [number for number, row in enumerate(rows["bad"], start=1) if "error" in row] == [2]
    failed = rows["bad"][1]
    assert [*failed] == ["input", "output", "target", "prompt", "error"]
    assert failed["target"] == bad["output"]
    assert re.search(message, failed["error"])
    said = capsys.readouterr()
    assert "1 of 5 records could not be answered: their rows in" in said.err
    *_, samples, _, _, errors = said.out.splitlines()[-1].strip("| ").split(" | ")
    assert (samples, errors) == ("5", "1")


def test_the_row_of_a_missing_image_names_the_whole_path(flags, pictures, tmp_path):
    data = write_json_file(tmp_path / "bad.json", [MISSING])
    code, rows = answer(flags, data, tmp_path / "results", img_dir=pictures)
    assert code == 1
    assert rows["bad"][0]["input"] == f"{image_tag(str(pictures / 'mauve.png'))}Which colour?"


@pytest.mark.parametrize("nothing", ["[]", ""], ids=["no records", "no bytes"])
def test_an_empty_dataset_is_counted_as_an_error_and_the_others_are_answered(
    flags, pictures, tmp_path, capsys, nothing
):
    data = write_mixture(tmp_path, nothing=[], sun=[SUN])
    (tmp_path / "nothing.json").write_text(nothing)
    code, rows = answer(flags, data, tmp_path / "results")
    assert code == 1
    assert [*rows["sun"]] == [SUN | {"target": SUN["output"], "prompt": rows["sun"][0]["prompt"]}]
    (row,) = rows["nothing"]
    assert re.search(r"nothing\.json (holds no records|is empty)", row["error"])
    said = capsys.readouterr()
    assert "dataset nothing has nothing to answer" in said.err
    assert [line.split(" | ")[0] for line in said.out.splitlines()[2:]] == ["| nothing", "| sun"]


@pytest.mark.parametrize("nothing", ["[]", ""], ids=["no records", "no bytes"])
def test_a_data_file_without_records_is_an_empty_dataset(flags, tmp_path, nothing):
    data = tmp_path / "nothing.json"
    data.write_text(nothing)
    code, rows = answer(flags, data, tmp_path / "results")
    assert code == 1
    assert "error" in rows["nothing"][0]


def test_a_data_file_that_is_not_there_is_refused_before_anything_is_answered(flags, tmp_path):
    write_mixture(tmp_path, gone=[SUN], sun=[SUN])
    (tmp_path / "gone.json").unlink()
    with pytest.raises(ValueError, match=r"gone\.json does not exist"):
        answer(flags, tmp_path / "mixture.json", tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_second_run_into_the_same_folder_is_refused_while_the_first_one_lasts(flags, tmp_path):
    data, folder = write_json_file(tmp_path / "sun.json", [SUN]), tmp_path / "results" / "checkpoint_0" / "sun_-1"
    with held_alone(folder), pytest.raises(ValueError, match=r"another run writes into .*sun_-1: wait"):
        answer(flags, data, tmp_path / "results")
    code, rows = answer(flags, data, tmp_path / "results")
    assert (code, rows["sun"][0]["output"]) == (0, "A star.")
    assert not (folder / ".lock").exists()


# out of memory


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_a_batch_that_does_not_fit_into_memory_is_halved_until_it_does(
    flags, pictures, tmp_path, capsys, forward_hook, error
):
    data = write_json_file(tmp_path / "some.json", GOOD)
    expected = answer(flags, data, tmp_path / "whole", img_dir=pictures)
    assert "out of memory" not in capsys.readouterr().err
    forward_hook(memory_for(2, error))
    assert answer(flags, data, tmp_path / "halved", img_dir=pictures) == expected
    said = capsys.readouterr().err
    assert said.count("out of memory with") == said.count("out of memory with 4 records at once: going on with 2") == 1


def test_a_record_that_does_not_fit_into_memory_alone_has_an_error(flags, tmp_path, forward_hook):
    data = write_json_file(tmp_path / "sun.json", [SUN, SUN])
    forward_hook(memory_for(0))
    code, rows = answer(flags, data, tmp_path / "results")
    assert code == 1
    for row in rows["sun"]:
        assert re.search(r"memory is too small for its prompt of \d+ tokens with 12 more to come", row["error"])


def test_another_error_of_the_model_is_not_taken_for_a_records_own(flags, tmp_path, forward_hook):
    data = write_json_file(tmp_path / "sun.json", [SUN])

    def fail(module, args):
        if isinstance(module, nn.Embedding):
            raise RuntimeError("a fault of the model")

    forward_hook(fail)
    with pytest.raises(RuntimeError, match="a fault of the model"):
        answer(flags, data, tmp_path / "results")


def test_memory_that_is_really_full_is_known_by_its_error():
    with pytest.raises(RuntimeError) as full:
        torch.empty(1 << 60)
    assert is_out_of_memory(full.value)
