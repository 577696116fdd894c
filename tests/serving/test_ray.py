"""Two replicas on a real Ray cluster of this machine: they answer as the model does, and outlive each other."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from openai import OpenAI
from servers import MODEL, user
from toy import ROOT

pytest.importorskip("ray.serve", reason="Ray is an extra: pip install -e '.[ray]'")

from pydantic import ValidationError
from ray_cluster import patiently, ray_cluster

from deploy.ray_serve import Options, app

CONFIG = ROOT / "deploy" / "serve.yaml"


@pytest.fixture(scope="module")
def cluster(checkpoint, tmp_path_factory):
    """A cluster that runs deploy/serve.yaml, with two replicas of the toy task's model."""
    config, port = yaml.safe_load(CONFIG.read_text()), free_port()
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["args"] = {"num_replicas": 2}
    application["runtime_env"]["env_vars"] = {"FLAMINGO_CHECKPOINT": str(checkpoint)}
    path = tmp_path_factory.mktemp("ray") / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    with ray_cluster(path, f"http://127.0.0.1:{port}") as cluster:
        patiently(lambda: len(cluster.answers()) == 2)
        yield cluster


@pytest.fixture
def ask(cluster, pictures):
    """Asks for the colour of a picture."""
    client = OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=10)

    def ask(color="red", **settings):
        asked = user(pictures / f"{color}.png", "Which colour?")
        return client.chat.completions.create(model=MODEL, messages=[asked], temperature=0, max_tokens=24, **settings)

    return ask


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def text(completion) -> str:
    """The answer of a completion."""
    return completion.choices[0].message.content


def test_both_replicas_answer_and_say_the_same(cluster, ask):
    asked = ["red", "green", "blue"] * 8
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda color: text(ask(color)), asked)) == asked
    counts = cluster.answers().values()
    assert sum(counts) == len(asked)
    assert all(counts)


def test_an_answer_is_streamed(ask):
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(stream=True)]
    assert len(pieces) > 2
    assert "".join(pieces) == "red"


def test_a_killed_replica_is_replaced_and_requests_are_answered_meanwhile(cluster, ask):
    before = set(cluster.answers())
    victim = cluster.replicas()[0]
    victim.kill()

    def is_replaced() -> bool:
        assert text(ask()) == "red"
        now = set(cluster.answers())
        return len(now) == 2 and now != before

    patiently(is_replaced)
    assert victim not in cluster.replicas()


def test_options_become_those_of_ray_serve():
    fixed, scaled = (app(Options(**options))._bound_deployment for options in ({}, {"max_replicas": 3, "num_gpus": 1}))
    assert (fixed.num_replicas, fixed._deployment_config.autoscaling_config) == (1, None)
    scaling = scaled._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 3, 8)
    assert scaled.ray_actor_options["num_gpus"] == 1


@pytest.mark.parametrize("options", [{"num_replicas": 0}, {"replicas": 2}, {"num_replicas": 3, "max_replicas": 2}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValidationError, match="replicas"):
        Options(**options)
