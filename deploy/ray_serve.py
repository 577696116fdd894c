"""The app of `uvicorn api:app` as a Ray Serve application: `serve run deploy.ray_serve:app num_replicas=2`.

Each replica loads the model and has a queue of its own. Its settings are the `FLAMINGO_*` of docs/serving.md, from the
environment of the replica's process: that of the Ray node, or `runtime_env` in deploy/serve.yaml.
"""

import os
from typing import Any, cast

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from ray import serve
from ray.serve import Application, Deployment

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that this process starts reports to nobody


class Options(BaseModel):
    """How many replicas there are, and what each of them takes of its machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_replicas: PositiveInt = 1
    max_replicas: PositiveInt | None = None
    """Given: `num_replicas` are the fewest, and these the most, as many as `target_ongoing_requests` asks for."""
    target_ongoing_requests: PositiveFloat = 8.0
    """Requests per replica, on average; with FLAMINGO_BATCH_SIZE of them a replica answers full batches."""
    max_ongoing_requests: PositiveInt = 128
    """Requests that a replica is sent at once: more than it queues, so that it says itself when it is busy."""
    num_cpus: NonNegativeFloat = 1.0
    """Of these PyTorch makes its threads."""
    num_gpus: NonNegativeFloat = 0.0
    drain_timeout: PositiveFloat = 120.0
    """Seconds that a replica that is stopped has for what it is answering."""

    @model_validator(mode="after")
    def _most_is_not_below_fewest(self) -> "Options":
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(f"max_replicas={self.max_replicas} is below num_replicas={self.num_replicas}")
        return self

    @property
    def scaling(self) -> dict[str, Any]:
        """Ray Serve's options of a fixed number of replicas, or of a number that follows the load."""
        if self.max_replicas is None:
            return {"num_replicas": self.num_replicas}
        limits = {"min_replicas": self.num_replicas, "max_replicas": self.max_replicas}
        return {"autoscaling_config": limits | {"target_ongoing_requests": self.target_ongoing_requests}}


@serve.deployment(name="Flamingo")
@serve.ingress()
class Replica:
    """The app with a model of its own; Ray Serve runs the app's lifespan, and so loads the model, as the replica starts."""

    def __init__(self) -> None:
        import api  # made here, and not where the replica was described

        self.flamingo = api.app

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What `serve.ingress` asks for."""
        return self.flamingo

    def check_health(self) -> None:
        """Raise RuntimeError where nothing is answered any more; Ray Serve then replaces the replica."""
        if not self.flamingo.state.desk.batcher.is_open:
            raise RuntimeError("the thread that answers has ended")


def app(options: Options) -> Application:
    """The application; `serve run` and serve.yaml give the options as `num_replicas=2`."""
    deployment = cast(Deployment, Replica)  # what the decorators made of it
    return deployment.options(
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        max_ongoing_requests=options.max_ongoing_requests,
        graceful_shutdown_timeout_s=options.drain_timeout,
        **options.scaling,
    ).bind()
