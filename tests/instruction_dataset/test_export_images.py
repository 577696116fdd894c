"""MIMIC-IT's images as files: resized, written whole, gone on with, and never outside their folder."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image, PngImagePlugin
from pyarrow import parquet

from instruction_dataset.export_images import main

ROOT = Path(__file__).parents[2]


def encoded(image, kind="PNG", encode=base64.b64encode, **options):
    data = BytesIO()
    image.save(data, kind, **options)
    return encode(data.getvalue()).decode()


def plain(width, height, color="red"):
    return encoded(Image.new("RGB", (width, height), color))


@pytest.fixture
def export(tmp_path):
    """Writes images as JSON, or takes a file as it is, and exports them with flags; the exit code."""

    def run(images, *flags):
        source = images
        if not isinstance(images, Path):
            source = tmp_path / "LA.json"
            source.write_text(images if isinstance(images, str) else json.dumps(images))
        return main(["--source", str(source), "--output", str(tmp_path / "out"), "--size", "12", *flags])

    return run


def sizes(folder):
    made = {}
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")
            made[path.name] = image.size
    return made


def test_the_shorter_side_gets_the_size_whether_that_shrinks_or_grows_an_image(export, tmp_path, capsys):
    assert export({"LA_IMG_1": plain(64, 48), "été 火": plain(4, 10), "LA_IMG_3": plain(12, 12)}) == 0
    made = {"LA_IMG_1.png": (16, 12), "LA_IMG_3.png": (12, 12), "été 火.png": (12, 30)}
    assert sizes(tmp_path / "out") == made
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 3 written, 0 kept, 0 broken\n"


def test_the_size_is_336_unless_told(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": plain(10, 20)}))
    assert main(["--source", str(tmp_path / "a.json"), "--output", str(tmp_path / "new" / "out")]) == 0
    assert sizes(tmp_path / "new" / "out") == {"a.png": (336, 672)}


def test_pixels_are_those_of_lanczos(export, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(256, size=(36, 24, 3), dtype=np.uint8))
    assert export({"a": encoded(noise)}) == 0
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(noise.resize((12, 18), Image.Resampling.LANCZOS)))


def test_an_image_is_turned_upright_and_loses_its_metadata(export, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    image = Image.new("RGB", (30, 20))
    assert export({"a": encoded(image, "JPEG", exif=exif, icc_profile=b"x" * 99, comment=b"hello")}) == 0
    with Image.open(tmp_path / "out" / "a.png") as made:
        assert made.size == (12, 18)
        assert made.info == {}


def test_both_alphabets_of_base64_and_a_color_profile_of_megabytes_are_read(export, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8))
    profile = os.urandom(2 * PngImagePlugin.ImageFile.SAFEBLOCK)
    images = {"a": encoded(noise, encode=base64.urlsafe_b64encode), "b": encoded(noise, icc_profile=profile)}
    assert "-" in images["a"]
    assert export(images) == 0
    assert len(sizes(tmp_path / "out")) == 2


@pytest.mark.parametrize("column", ["id", "__index_level_0__"])
def test_parquet_gives_the_same_files_as_json(export, tmp_path, column):
    images = {f"VST_{i}": plain(20 + i, 15, color) for i, color in enumerate(("red", "green", "blue"))}
    table = pyarrow.table({"base64": list(images.values()), column: list(images)})
    parquet.write_table(table, tmp_path / "VST.parquet")
    assert export(tmp_path / "VST.parquet") == 0
    from_parquet = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out").rename(tmp_path / "before")
    assert export(images) == 0
    assert from_parquet == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_a_file_that_is_there_is_kept_as_it_is(export, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    assert export({"a": plain(20, 20), "b": plain(20, 20)}) == 0
    assert (tmp_path / "out" / "a.png").read_bytes() == b"mine"
    assert capsys.readouterr().out.endswith(": 1 written, 1 kept, 0 broken\n")


def test_broken_images_are_named_and_counted_and_the_others_written(export, tmp_path, capsys):
    cut = base64.b64encode(base64.b64decode(plain(64, 64))[:-40]).decode()
    text = base64.b64encode(b"no image").decode()
    assert export({"cut": cut, "good": plain(20, 20), "text": text, "odd": "abcde", "none": None}) == 1
    printed = capsys.readouterr()
    assert printed.out.endswith(": 1 written, 0 kept, 4 broken\n")
    source = tmp_path / "LA.json"
    lines = printed.err.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(f"broken: {source}, record 1: image cut cannot be decoded (")
    assert lines[1] == f"broken: {source}, record 3: image text is no image that Pillow can read; fetch it again"
    assert lines[2].startswith(f"broken: {source}, record 4: image odd is not sound base64 (")
    assert lines[3] == f"broken: {source}, record 5: image none must be base64 text, not null"
    assert list(sizes(tmp_path / "out")) == ["good.png"]


def test_of_many_broken_images_the_first_are_named(export, capsys):
    assert export({f"a{i}": "" for i in range(25)}) == 1
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines), lines[-1]) == (21, "broken: and 5 more")


@pytest.mark.parametrize("name", ["../a", "a/b", "..", ".", "", "/etc/a", "a\\b", "a\0b", ".hidden"])
def test_an_id_that_may_lead_out_of_the_folder_is_refused(export, tmp_path, capsys, name):
    assert export({name: plain(20, 20)}) == 1
    expected = f"error: {tmp_path / 'LA.json'}, record 1: id {name!r} is no file name, and may lead out of the folder"
    assert capsys.readouterr().err.startswith(expected)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["LA.json", "out"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "has no object with anything in it"),
        ('{"a": "b"', "is not sound JSON"),
        ("", "is not sound JSON"),
    ],
)
def test_a_malformed_file_is_one_line_with_a_remedy(export, tmp_path, capsys, text, message):
    assert export(text) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'LA.json'} {message}")
    assert error.count("\n") == 1


def test_a_table_without_ids_or_images_is_refused_by_column(export, tmp_path, capsys):
    for names, message in (
        (("key", "base64"), "field 'id' is missing"),
        (("id", "image"), "field 'base64' is missing"),
    ):
        file = tmp_path / f"{names[0]}.parquet"
        parquet.write_table(pyarrow.table({name: ["a"] for name in names}), file)
        assert export(file) == 1
        assert capsys.readouterr().err == f"error: {file}, record 1: {message}\n"


def test_an_output_that_cannot_be_written_is_one_line_with_a_remedy(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps({"a": plain(2, 2)}))
    assert main(["--source", str(tmp_path / "a.json"), "--output", str(tmp_path / "a.json" / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'a.json' / 'out'} cannot be read or written: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("flags", [["--size", "0"], ["--size", "big"], ["--workers", "-1"], ["--siz", "4"]])
def test_a_wrong_flag_ends_with_2(export, flags):
    with pytest.raises(SystemExit) as caught:
        export({"a": plain(2, 2)}, *flags)
    assert caught.value.code == 2


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_whole_images_and_the_next_run_goes_on(export, tmp_path, end, capsys):
    noise = encoded(Image.fromarray(np.random.default_rng(0).integers(256, size=(400, 400, 3), dtype=np.uint8)))
    images = {f"a{i:03d}": noise for i in range(200)}
    (tmp_path / "LA.json").write_text(json.dumps(images))
    command = [sys.executable, "-m", "instruction_dataset.export_images", "--source", tmp_path / "LA.json"]
    process = subprocess.Popen(
        [*command, "--output", tmp_path / "out", "--size", "200"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("[!.]*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(end)
    error = process.communicate()[1]
    if end == signal.SIGINT:
        assert process.returncode == 130
        assert error.endswith("the same command goes on from here\ninterrupted\n")
        assert "Traceback" not in error
        assert list((tmp_path / "out").glob(".*")) == []
    made = list((tmp_path / "out").glob("[!.]*"))
    assert 4 <= len(made) < 200
    for path in made:
        with Image.open(path) as image:
            image.load()
    there = {path.stem for path in made}
    assert export(dict.fromkeys([*there, *sorted(images.keys() - there)[:3]], noise)) == 0
    assert capsys.readouterr().out.endswith(f": 3 written, {len(made)} kept, 0 broken\n")


def test_help_teaches_with_examples(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert (
        "python -m instruction_dataset.export_images --source MIMIC-IT/LA/LA.json --output images/mimic-it" in printed
    )
    assert "(default: 336)" in printed
