"""What the schema of the API says is so: whatever it lets be asked is answered as it says, and never with a fault."""

from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hostile import CHAT, data_url, encoded
from hypothesis import HealthCheck, given, settings
from schemathesis import checks
from servers import MODEL, Server

from open_flamingo.serving.app import create_app

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
REFUSALS = [checks.negative_data_rejection, checks.unsupported_method]
IMAGE = data_url(encoded())
PATHS = ["/", "/clever_flamingo", "/health", "/metrics", "/prompt", "/ready", "/v1/chat/completions", "/v1/models"]

schema = schemathesis.openapi.from_dict(create_app().openapi())


@pytest.fixture(scope="module")
def brief(started) -> Iterator[Server]:
    """A server that answers briefly."""
    with started(max_new_tokens=4, max_prompt_tokens=256) as server:
        yield server


few = settings(max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


@schema.parametrize()
@few
def test_whatever_is_asked_is_answered_as_the_schema_says(case, brief):
    case.call_and_validate(base_url=brief.url, checks=CHECKS + REFUSALS)


@given(case=schema[CHAT]["POST"].as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE))
@few
def test_chats_that_the_model_hears_are_answered_as_the_schema_says(case, brief):
    go_further(case.body)
    case.call_and_validate(base_url=brief.url, checks=CHECKS)


def go_further(body: dict) -> None:
    """Let a chat be one of this model, of a user, and of images: else all that is behind those stays untried."""
    body["model"] = MODEL
    for message in body["messages"]:
        message["role"] = "user"
        for part in message["content"] if isinstance(message["content"], list) else ():
            if "image_url" in part:
                part["image_url"]["url"] = IMAGE


def test_most_of_those_chats_got_an_answer(brief):
    assert brief.metric(f'flamingo_requests_total{{path="{CHAT}",status="200"}}') > 20


def test_the_schema_names_all_paths_and_the_shape_of_their_errors():
    assert sorted(schema.raw_schema["paths"]) == PATHS
    for operations in schema.raw_schema["paths"].values():
        for operation in operations.values():
            for status in ("4XX", "5XX"):
                content = operation["responses"][status]["content"]
                assert content == {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}


def test_the_schema_is_served(brief):
    assert httpx.get(f"{brief.url}/openapi.json").json() == schema.raw_schema
