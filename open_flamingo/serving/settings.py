"""What a server is told: by `FLAMINGO_*` variables of the environment, or by a file that FLAMINGO_CONFIG names."""

import json
import logging
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, ByteSize, DirectoryPath, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

logger = logging.getLogger("open_flamingo.serving")

PREFIX = "FLAMINGO_"
FILE_VARIABLE = "FLAMINGO_CONFIG"
QUICKSTART = "runs/quickstart/checkpoint_0.pt"
MIB = 2**20
ORIGIN = re.compile(r"https?://[^/*@\s]+")


def _split(value: Any) -> Any:
    """Values with commas between them, as an environment can hold them."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _known_device(name: str) -> str:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError("must be a device that this machine has, such as cpu, cuda or cuda:1") from error
    return name


def _key(value: Any) -> Any:
    """A key without the space around it, which no header keeps."""
    if isinstance(value, str) and not (value := value.strip()):
        raise ValueError("must not be empty: give a key, or leave it out to let everyone in")
    return value


def _origin(value: str) -> str:
    origin = value.rstrip("/").lower()
    if not ORIGIN.fullmatch(origin):
        raise ValueError("must be origins of web pages, such as https://demo.example.org")
    return origin


Folders = Annotated[tuple[DirectoryPath, ...], NoDecode, BeforeValidator(_split)]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(_split)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ServeSettings(BaseSettings):
    """The model that a server serves, how it answers, and what it lets in."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=False
    )

    checkpoint: str = Field(
        default=QUICKSTART, description="a checkpoint, several with commas, or a folder written by `export`"
    )
    lm_path: str | None = Field(default=None, description="language model, where the checkpoint does not say it")
    tokenizer_path: str | None = Field(default=None, description="its tokenizer, if it has another folder")
    vision_encoder_path: str | None = Field(
        default=None, description="vision tower, where the checkpoint does not say it"
    )
    vision_encoder_pretrained: str | None = Field(
        default=None, description="its weights: a tag of open_clip, or a file"
    )
    quick_gelu: bool | None = Field(default=None, description="QuickGELU in the tower, for a file of OpenAI's weights")
    tuning_config: Path | None = Field(default=None, description="tuning config, where the checkpoint does not say it")
    cross_attn_every_n_layers: Count | None = Field(default=None, description="layers per gated block, likewise")
    v1: bool = Field(default=False, description="the model is of the first version of OpenFlamingo")
    template: Literal["guanaco", "guanaco-no-prompt"] | None = Field(
        default=None, description="prompt template, if not the one of training"
    )
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="arithmetic: `fp32` or `bf16`")
    device: Annotated[str, AfterValidator(_known_device)] | None = Field(
        default=None, description="such as `cuda:1`; not given: an accelerator, if there is one"
    )
    compile: bool = Field(default=False, description="compile the decoder layers; the first answers take minutes")
    model_name: str | None = Field(
        default=None, description="what clients call the model; not given: the checkpoint's folder"
    )

    batch_size: Count = Field(default=8, description="answers made together, at most")
    batch_tokens: Count = Field(default=16384, description="tokens of a batch, prompts and answers together, at most")
    batch_wait: float = Field(
        default=0.005, ge=0, le=10, description="seconds that a batch that is not full waits for a further request"
    )
    queue_size: Count = Field(default=64, description="requests that may wait; more are told to come again (429)")
    request_timeout: Seconds = Field(
        default=120.0, description="seconds that a request may take, waiting included (504)"
    )

    max_prompt_tokens: Count = Field(default=4096, description="tokens of a prompt, at most")
    max_new_tokens: Count = Field(
        default=1024, description="tokens of an answer, at most, and where a request does not say it"
    )
    max_beams: Count = Field(default=16, description="beams of a request, over all of its answers, at most")
    max_images: int = Field(default=16, ge=0, description="images of a request, at most")
    max_image_bytes: ByteSize = Field(default=ByteSize(20 * MIB), ge=1, description="size of an image file, at most")
    max_image_pixels: Count = Field(default=50_000_000, description="width times height of an image, at most")
    max_body_bytes: ByteSize = Field(default=ByteSize(64 * MIB), ge=1, description="size of a request, at most")

    image_folders: Folders = Field(
        default=(),
        description="folders, with commas, whose images requests may name by path; none: only images in the request",
    )
    allow_urls: bool = Field(default=False, description="fetch images from public http(s) addresses that requests name")
    fetch_timeout: Seconds = Field(default=10.0, description="seconds that fetching an image may take")
    api_key: Annotated[SecretStr, BeforeValidator(_key)] | None = Field(
        default=None, description="what requests must bring as `Authorization: Bearer`; not given: nothing"
    )
    origins: Origins = Field(
        default=(), description="web pages, with commas, that may call: `https://demo.example.org`"
    )

    @property
    def name(self) -> str:
        """What clients call the model."""
        if self.model_name is not None:
            return self.model_name
        path = Path(self.checkpoint.split(",")[-1].strip()).absolute()
        return path.name if path.is_dir() else path.parent.name

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is named in the call, then the environment, then the file."""
        return init_settings, env_settings, InitSettingsSource(settings_cls, _read_file())


def read_settings() -> ServeSettings:
    """The settings of this process. Raises ValueError, one sentence that names the key and where it was set."""
    for name in sorted(os.environ):
        variable = name.upper()
        key = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and variable != FILE_VARIABLE and key not in ServeSettings.model_fields:
            logger.warning("%s is no setting of a server, and is not followed", name)
    try:
        return ServeSettings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(_sentence(str(first["loc"][0]), first["type"], first["msg"])) from error


def _read_file() -> dict[str, Any]:
    """The keys of the file that the environment names, if it names one. Raises ValueError for what is no such file."""
    if not (name := os.environ.get(FILE_VARIABLE)):
        return {}
    path = Path(name)
    readers = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix not in readers:
        raise ValueError(f"{FILE_VARIABLE}: {path} must be a .toml or a .json file")
    try:
        values = readers[path.suffix](path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{FILE_VARIABLE}: {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{FILE_VARIABLE}: {path} is not {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{FILE_VARIABLE}: {path} must hold an object of settings")
    return values


def _sentence(key: str, kind: str, problem: str) -> str:
    variable = next((name for name in os.environ if name.upper() == PREFIX + key.upper()), None)
    where = variable or f"{key} in {os.environ.get(FILE_VARIABLE)}"
    if kind == "extra_forbidden":
        return f"{where} is no setting; there are {', '.join(ServeSettings.model_fields)}"
    return f"{where}: {problem.removeprefix('Value error, ')}"
