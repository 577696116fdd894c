"""Settings come from the environment or a file; what is wrong with them is one sentence, and the table names them all."""

import json
import os
import re
from pathlib import Path

import pytest
from pydantic import ByteSize
from servers import PATIENCE, launch, said
from toy import ROOT

from open_flamingo.serving.settings import FILE_VARIABLE, PREFIX, ServeSettings, read_settings


@pytest.fixture(autouse=True)
def clean(monkeypatch) -> None:
    """No settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Names a file of some content as the one of settings."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        monkeypatch.setenv(FILE_VARIABLE, str(path))
        return path

    return write


def test_with_nothing_set_the_quickstarts_model_is_served():
    settings = read_settings()
    assert (settings.checkpoint, settings.name) == ("runs/quickstart/checkpoint_0.pt", "quickstart")


def test_the_environment_sets(monkeypatch, tmp_path):
    values = {"BATCH_SIZE": "16", "IMAGE_FOLDERS": f"{tmp_path}, {tmp_path}", "ALLOW_URLS": "true", "API_KEY": "secret"}
    for name, value in (values | {"MAX_BODY_BYTES": "1 MiB", "DEVICE": "cpu"}).items():
        monkeypatch.setenv(PREFIX + name, value)
    settings = read_settings()
    assert (settings.batch_size, settings.image_folders, settings.allow_urls) == (16, (tmp_path, tmp_path), True)
    assert (settings.api_key.get_secret_value(), settings.max_body_bytes, settings.device) == ("secret", 2**20, "cpu")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", 'batch_size = 16\nqueue_size = 5\norigins = ["https://a.org"]\n'),
        ("a.json", json.dumps({"batch_size": 16, "queue_size": 5, "origins": ["https://a.org"]})),
    ],
)
def test_a_file_sets_what_the_environment_does_not(written, monkeypatch, name, text):
    written(name, text)
    monkeypatch.setenv("FLAMINGO_QUEUE_SIZE", "7")
    settings = read_settings()
    assert (settings.batch_size, settings.queue_size, settings.origins) == (16, 7, ("https://a.org",))


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.toml", "batch = 16", r"batch in \S+a\.toml is no setting; there are checkpoint, "),
        ("a.toml", "batch_size = 0", r"batch_size in \S+a\.toml: Input should be greater than or equal to 1$"),
        ("a.toml", "batch_size = ", r"FLAMINGO_CONFIG: \S+a\.toml is not TOML"),
        ("a.json", "[" * 100_000, r"FLAMINGO_CONFIG: \S+a\.json is not JSON"),
        ("a.json", "[1]", r"FLAMINGO_CONFIG: \S+a\.json must hold an object of settings"),
        ("a.yaml", "", r"FLAMINGO_CONFIG: \S+a\.yaml must be a \.toml or a \.json file"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_a_sentence_that_names_it(written, name, text, sentence):
    written(name, text)
    with pytest.raises(ValueError, match=sentence):
        read_settings()


def test_a_file_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv(FILE_VARIABLE, "nowhere.toml")
    with pytest.raises(ValueError, match=r"FLAMINGO_CONFIG: nowhere\.toml cannot be read: No such file"):
        read_settings()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("BATCH_SIZE", "many", "FLAMINGO_BATCH_SIZE: Input should be a valid integer"),
        ("PRECISION", "fp16", "FLAMINGO_PRECISION: Input should be 'fp32' or 'bf16'"),
        ("DEVICE", "gpu", "FLAMINGO_DEVICE: must be a device that this machine has"),
        ("DEVICE", "cuda:99", "FLAMINGO_DEVICE: must be a device that this machine has"),
        ("batch_size", "many", "FLAMINGO_batch_size: Input should be a valid integer"),
        ("ORIGINS", "*", "FLAMINGO_ORIGINS: must be origins of web pages, such as https://demo.example.org"),
        ("ORIGINS", "https://a.org, demo.example.org", "FLAMINGO_ORIGINS: must be origins of web pages"),
        ("ORIGINS", "https://a.org/page", "FLAMINGO_ORIGINS: must be origins of web pages"),
        ("IMAGE_FOLDERS", "/nowhere", "FLAMINGO_IMAGE_FOLDERS: Path does not point to a directory"),
        ("API_KEY", "", "FLAMINGO_API_KEY: must not be empty: give a key"),
        ("API_KEY", " ", "FLAMINGO_API_KEY: must not be empty: give a key"),
        ("REQUEST_TIMEOUT", "inf", "FLAMINGO_REQUEST_TIMEOUT: Input should be a finite number"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_a_sentence_that_names_its_variable(monkeypatch, name, value, sentence):
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(ValueError, match=sentence):
        read_settings()


def test_origins_are_as_browsers_write_them(monkeypatch):
    monkeypatch.setenv("FLAMINGO_ORIGINS", "https://Demo.example.org/, http://[::1]:8080")
    assert read_settings().origins == ("https://demo.example.org", "http://[::1]:8080")


def test_a_model_is_called_after_its_folder_whatever_is_in_its_name(tmp_path):
    folder = tmp_path / "flamingo-1.5"
    folder.mkdir()
    for checkpoint in (folder, folder / "checkpoint_0.pt"):
        assert ServeSettings(checkpoint=str(checkpoint)).name == "flamingo-1.5"


def test_a_variable_that_is_no_setting_is_told_of(monkeypatch, caplog):
    monkeypatch.setenv("FLAMINGO_APIKEY", "secret")
    read_settings()
    assert caplog.messages == ["FLAMINGO_APIKEY is no setting of a server, and is not followed"]


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (
            {"FLAMINGO_CHECKPOINT": "nowhere.pt"},
            "there is no checkpoint nowhere.pt: name one with FLAMINGO_CHECKPOINT, or make"
            " runs/quickstart/checkpoint_0.pt with `make quickstart`",
        ),
        ({"FLAMINGO_QUEUE_SIZE": "0"}, "FLAMINGO_QUEUE_SIZE: Input should be greater than or equal to 1"),
    ],
    ids=["checkpoint", "value"],
)
def test_a_server_that_cannot_start_says_why_and_ends(tmp_path, environment, sentence):
    log = tmp_path / "log"
    process = launch(log, environment)
    process.join(PATIENCE)
    assert process.exitcode not in (None, 0)
    assert f"ERROR:    error: {sentence}\n" in said(log)
    assert "Traceback" not in said(log)


def test_the_table_of_the_document_is_that_of_the_settings():
    _, _, text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").partition("## Settings\n")
    table, _, _ = text.partition("\n## ")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", table, re.MULTILINE)
    fields = ServeSettings.model_fields.items()
    assert rows == [(name, shown(field.default), field.description) for name, field in fields]


def shown(default: object) -> str:
    """A default as the table has it."""
    if default is None or default == ():
        return ""
    value = default.human_readable() if isinstance(default, ByteSize) else default
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
