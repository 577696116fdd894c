"""Whole datasets answered and scored: the files, their fields and order, and the summary."""

import json

import pytest
from toy import COLORS, TEXT_ONLY, as_flags, question, write_json_file, write_mixture, write_pictures

from instruction_dataset.records import image_tag
from open_flamingo.instruction_tuning.config import TrainedConfig
from open_flamingo.instruction_tuning.data.prompts import format_prompt
from open_flamingo.instruction_tuning.instruction_dataset_inference import DataFlags, Flags, GenerationFlags, main

SUN = TEXT_ONLY[0]
COLOR_RECORDS = [question("red", "blue"), *(question(color) for color in COLORS)]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """A folder of pictures."""
    folder = tmp_path_factory.mktemp("gallery")
    write_pictures(folder)
    return folder


@pytest.fixture(scope="module")
def mixture(gallery):
    """A dataset config of two datasets."""
    return write_mixture(gallery, colours=COLOR_RECORDS, sun=[SUN])


@pytest.fixture(scope="module")
def flags(toy_run):
    """Greedy answers of the toy model, in small batches."""
    return as_flags(
        checkpoint_paths=toy_run / "checkpoint_0.pt",
        do_sample=False,
        max_new_token=12,
        no_repeat_ngram_size=0,
        batch_size=2,
    )


def read(path):
    return json.loads(path.read_text())


def test_every_record_is_answered_in_its_order_with_all_fields(flags, mixture, gallery, tmp_path, capsys):
    assert main([*flags, *as_flags(instruction_path=mixture, num_samples=-1, results_dir=tmp_path)]) == 0
    folder = tmp_path / "checkpoint_0" / "mixture_-1"
    assert {path.name for path in folder.iterdir()} == {"colours.json", "sun.json", "summary.md", "summary.html"}
    expected = [
        {
            "input": "".join(image_tag(str(gallery / f"{color}.png")) for color in colors) + "Which colour?",
            "output": " ".join(colors),
            "target": " ".join(colors),
            "prompt": format_prompt("<image>" * len(colors) + "Which colour?", "guanaco-no-prompt"),
        }
        for colors in (["red", "blue"], *([color] for color in COLORS))
    ]
    assert read(folder / "colours.json") == expected
    prompt = format_prompt(SUN["input"], "guanaco-no-prompt")
    assert read(folder / "sun.json") == [SUN | {"target": SUN["output"], "prompt": prompt}]
    assert (
        (folder / "summary.md").read_text()
        == capsys.readouterr().out
        == (
            "| Dataset | Avg ROUGE-L | Avg target length | Avg prediction length | Exact matches | Match percentage"
            " | Total samples | Token F1 | ANLS | Errors |\n"
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
            "| colours | 1.0000 | 1.25 | 1.25 | 4 | 100.00% | 4 | 1.0000 | 1.0000 | 0 |\n"
            "| sun | 1.0000 | 2.00 | 2.00 | 1 | 100.00% | 1 | 1.0000 | 1.0000 | 0 |\n"
        )
    )


@pytest.mark.parametrize(("mode", "counts"), [("ratio", [2, 2]), ("sqrt", [3, 1])])
def test_so_many_records_are_answered_as_asked_for_shared_out_by_the_mode(flags, mixture, tmp_path, mode, counts):
    settings = as_flags(instruction_path=mixture, num_samples=4, results_dir=tmp_path, dataset_sampling_mode=mode)
    main([*flags, *settings])
    folder = tmp_path / "checkpoint_0" / "mixture_4"
    assert [len(read(folder / f"{name}.json")) for name in ("colours", "sun")] == counts


def test_records_are_chosen_by_the_seed_and_stay_in_the_order_of_their_file(flags, mixture, tmp_path):
    answered = []
    for run, seed in (("a", 1), ("b", 1), ("c", 5)):
        settings = as_flags(instruction_path=mixture, num_samples=4, results_dir=tmp_path / run, seed=seed)
        main([*flags, *settings])
        answered.append([row["target"] for row in read(tmp_path / run / "checkpoint_0" / "mixture_4" / "colours.json")])
    order = [record["output"] for record in COLOR_RECORDS]
    assert answered[0] == answered[1] != answered[2]
    for targets in answered:
        assert targets == sorted(targets, key=order.index)


def test_a_data_file_is_answered_with_the_image_folder_of_the_flag(flags, gallery, tmp_path):
    path = write_json_file(tmp_path / "one.json", [question("green")])
    main([*flags, *as_flags(instruction_path=path, img_dir=gallery, results_dir=tmp_path)])
    (row,) = read(tmp_path / "checkpoint_0" / "one_1" / "one.json")
    assert row["input"] == f"{image_tag(str(gallery / 'green.png'))}Which colour?"
    assert row["output"] == "green"


def test_the_prompt_template_of_the_flag_is_used(flags, tmp_path):
    path = write_json_file(tmp_path / "sun.json", [SUN])
    main([*flags, *as_flags(instruction_path=path, results_dir=tmp_path, instruction_prompt_templete="guanaco")])
    (row,) = read(tmp_path / "checkpoint_0" / "sun_1" / "sun.json")
    assert row["prompt"] == format_prompt(SUN["input"], "guanaco")


def test_a_metric_of_the_users_own_has_a_column(flags, gallery, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("def letters(prediction, target):\n    return len(prediction)\n")
    data = write_json_file(tmp_path / "one.json", [question("green")])
    settings = as_flags(img_dir=gallery, metrics=f"{file}:letters, operator:eq")
    assert main([*flags, *as_flags(instruction_path=data, results_dir=tmp_path), *settings]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].endswith("| Errors | letters | eq |")
    assert table[2].endswith("| 0 | 5.0000 | 1.0000 |")


def test_a_metric_that_does_not_exist_is_refused_before_the_model_is_read(tmp_path):
    with pytest.raises(ValueError, match="--metrics"):
        main(as_flags(checkpoint_paths=tmp_path / "gone.pt", instruction_path=tmp_path / "gone.json", metrics="gone:f"))


def test_results_are_filed_by_a_file_without_its_suffix_and_by_the_whole_name_of_a_folder(tmp_path):
    for name in ("flamingo-v1.2", "shards-0.5"):
        (tmp_path / name).mkdir()
    for checkpoint, data, expected in (
        ("best.pt", "digits.json", "best/digits_1"),
        ("flamingo-v1.2", "shards-0.5", "flamingo-v1.2/shards-0.5_1"),
    ):
        model = TrainedConfig(checkpoint_paths=f"{tmp_path / checkpoint}")
        data_flags = DataFlags(instruction_path=tmp_path / data, results_dir=tmp_path)
        assert Flags(model, data_flags, GenerationFlags()).folder == tmp_path / expected


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("batch_size", 0, "--batch_size must be at least 1, not 0"),
        ("max_batch_tokens", -1, "--max_batch_tokens must be at least 0, not -1"),
        ("max_new_token", 0, "--max_new_token must be at least 1, not 0"),
        ("temperature", 0, "temperature must be above 0"),
    ],
)
def test_a_bad_flag_ends_with_code_2_and_a_message(capsys, flag, value, message):
    with pytest.raises(SystemExit) as end:
        main(as_flags(checkpoint_paths="x.pt", instruction_path="x.json", **{flag: value}))
    assert end.value.code == 2
    assert message in capsys.readouterr().err
