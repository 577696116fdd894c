"""Mixing as a command: ratios given or made of sizes, the recipe that ships, and files that are none."""

import json

import pytest

from instruction_dataset import mix
from instruction_dataset.catalogue import find_sources
from instruction_dataset.dataset_config import parse_entry

ROW = {"input": "What is this?", "output": "A cat."}
SIZES = {"cats": 9, "dogs": 4, "birds": 1}


@pytest.fixture
def folder(tmp_path):
    """A folder of three converted files of different size."""
    for name, size in SIZES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps([ROW] * size))
    return tmp_path


@pytest.fixture
def mixed(folder):
    """Writes a config of the files of the folder with flags, and reads it."""

    def run(*flags):
        output = folder / "configs" / "mixture.json"
        assert mix.main([*map(str, flags), "--converted", str(folder), "--output", str(output)]) == 0
        return json.loads(output.read_text())

    return run


def ratios(config):
    return {entry["dataset_name"]: entry["ratio"] for entry in config}


def test_a_config_names_each_file_by_its_name_with_the_ratio_given(folder, mixed, capsys):
    assert mixed("cats=2", folder / "dogs.json=0.5") == [
        {"dataset_name": "cats", "json_path": str(folder / "cats.json"), "img_dir": "", "ratio": 2.0},
        {"dataset_name": "dogs", "json_path": str(folder / "dogs.json"), "img_dir": "", "ratio": 0.5},
    ]
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed[1:] == [["dataset", "ratio", "share"], ["cats", "2", "80.00%"], ["dogs", "0.5", "20.00%"]]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"cats": 9, "dogs": 4, "birds": 1}),
        (["--by", "records"], {"cats": 9, "dogs": 4, "birds": 1}),
        (["--by", "sqrt"], {"cats": 3, "dogs": 2, "birds": 1}),
        (["--by", "equal"], {"cats": 1, "dogs": 1, "birds": 1}),
    ],
)
def test_without_ratios_they_are_made_of_the_sizes(flags, expected, mixed):
    assert ratios(mixed(*SIZES, *flags)) == expected


def test_json_lines_and_folders_of_shards_are_mixed_like_arrays(folder, mixed):
    (folder / "lines.jsonl").write_text(f"{json.dumps(ROW)}\n" * 3)
    (folder / "shards").mkdir()
    for number in range(2):
        (folder / "shards" / f"{number}.jsonl").write_text(f"{json.dumps(ROW)}\n" * 5)
    assert ratios(mixed("lines", folder / "shards")) == {"lines": 3, "shards": 10}


def test_a_file_whose_name_holds_an_equals_sign_is_found(folder, mixed):
    (folder / "k=1.json").write_text(json.dumps([ROW]))
    assert ratios(mixed(folder / "k=1.json", "--by", "equal")) == {"k=1": 1}


def test_images_lie_in_the_folder_of_all_or_of_the_one_that_is_named(folder, mixed):
    for name in ("coco", "zoo", "odd=name"):
        (folder / name).mkdir()
    flags = ["--img_dir", folder / "coco", "--img_dir", f"dogs={folder / 'zoo'}"]
    folders = [entry["img_dir"] for entry in mixed(*SIZES, *flags)]
    assert folders == [str(folder / name) for name in ("coco", "zoo", "coco")]
    assert mixed("cats", "--img_dir", folder / "odd=name")[0]["img_dir"] == str(folder / "odd=name")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["mice"], "neither mice nor {folder}/mice.json exists; convert it, or correct --converted"),
        (["cats=many"], "'cats=many' must end with a ratio above 0, not 'many'; write cats=1"),
        (["cats=0"], "'cats=0' must end with a ratio above 0, not '0'; write cats=1"),
        (["cats=inf"], "'cats=inf' must end with a ratio above 0, not 'inf'; write cats=1"),
        (["cats", "cats"], "two files are named 'cats', by which results are filed; rename one"),
        (["empty"], "{folder}/empty.json holds no records; convert it again"),
        (["blank"], "{folder}/blank.json is empty; it must hold a JSON array, JSON Lines or Parquet"),
        (["raw"], "{folder}/raw.json, record 1: a record with the keys ['a'] is of no known shape; "),
        (["cats", "--img_dir", "{folder}/no"], "--img_dir {folder}/no: {folder}/no is no folder; name the one that "),
        (
            ["cats", "--img_dir", "dogs={folder}"],
            "--img_dir dogs={folder} names no dataset of the mixture; they are cats",
        ),
        (["--recipe", "clever_flamingo_v2"], "{folder} lacks 27 of the datasets of clever_flamingo_v2: llava-complex-"),
        (["--recipe", "clever_flamingo_v2", "--allow_missing"], "{folder} holds none of the datasets of clever_"),
    ],
)
def test_what_cannot_be_mixed_is_one_line_and_writes_nothing(flags, message, folder, capsys):
    (folder / "empty.json").write_text("[]")
    (folder / "blank.json").touch()
    (folder / "raw.json").write_text('[{"a": 1}]')
    flags = [flag.format(folder=folder) for flag in flags]
    assert mix.main([*flags, "--converted", str(folder), "--output", str(folder / "out.json")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message.format(folder=folder)}")
    assert error.count("\n") == 1
    assert not (folder / "out.json").exists()


def test_a_config_never_replaces_a_file_that_it_names(folder, capsys):
    before = (folder / "cats.json").read_text()
    assert mix.main(["cats", "dogs", "--converted", str(folder), "--output", str(folder / "cats.json")]) == 1
    assert (
        capsys.readouterr().err == f"error: --output {folder / 'cats.json'} is one of the files to mix; name another\n"
    )
    assert (folder / "cats.json").read_text() == before


def test_a_name_is_that_of_a_converted_file_whatever_lies_in_the_current_folder(folder, mixed, monkeypatch, tmp_path):
    (tmp_path / "download" / "cats").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "download")
    assert mixed("cats=1")[0]["json_path"] == str(folder / "cats.json")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name either converted files or --recipe clever_flamingo_v2"),
        (["cats", "--recipe", "clever_flamingo_v2"], "name either converted files or --recipe"),
        (["cats=1", "dogs"], "give NAME=RATIO for all, or for none"),
        (["cats=1", "--by", "sqrt"], "leave one of the two out"),
        (["--recipe", "clever_flamingo_v2", "--by", "sqrt"], "the recipe has its own; leave one of the two out"),
        (["cats", "--allow_missing"], "--allow_missing is for a --recipe"),
    ],
)
def test_flags_that_contradict_each_other_end_with_2(flags, message, folder, capsys):
    with pytest.raises(SystemExit) as caught:
        mix.main([*flags, "--converted", str(folder), "--output", str(folder / "out.json")])
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def recipe():
    return json.loads((mix.CONFIGS / "datasets.json").read_text())


def test_the_recipe_that_ships_has_27_datasets_of_100_percent_each_made_by_a_converter():
    entries = [parse_entry(row, ()) for row in recipe()]
    assert len({entry.name for entry in entries}) == 27
    assert sum(entry.ratio for entry in entries) == pytest.approx(100)
    assert {entry.path.stem for entry in entries} <= find_sources().keys()
    assert {str(entry.path.parent) for entry in entries} == {"instruction_dataset/converted_datasets"}
    largest = max(entries, key=lambda entry: entry.ratio)
    assert (largest.name, largest.ratio) == ("alpaca_cot_merged", 33.85)


def test_the_recipe_is_written_for_the_files_that_are_there_in_its_order(folder, mixed, capsys):
    for name in ("lrv.jsonl", "identity.json"):
        (folder / name).write_text(json.dumps(ROW) if name.endswith("l") else json.dumps([ROW]))
    config = mixed("--recipe", "clever_flamingo_v2", "--allow_missing")
    assert ratios(config) == {"LRV": 2.76, "xiaobing_hard_coded": 0.11}
    assert [entry["json_path"] for entry in config] == [str(folder / "lrv.jsonl"), str(folder / "identity.json")]
    assert capsys.readouterr().err.startswith(f"left out, not in {folder}: llava-complex-reasoning-77k, ")


def test_with_all_files_there_the_recipe_is_the_one_that_ships(folder, mixed):
    for row in recipe():
        (folder / row["json_path"].rpartition("/")[2]).write_text(json.dumps([ROW]))
    assert ratios(mixed("--recipe", "clever_flamingo_v2")) == ratios(recipe())


def test_help_gives_examples_that_the_command_takes(capsys):
    with pytest.raises(SystemExit):
        mix.main(["--help"])
    commands = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"  {mix.USE} ")]
    parsed = [mix._parser().parse_args(line.removeprefix(f"  {mix.USE} ").split()) for line in commands]
    assert [bool(args.recipe) for args in parsed] == [False, False, False, True]
