"""Instruct-Flamingo: fine-tune and serve Flamingo-style multi-modal language models."""

from open_flamingo.src.factory import create_model_and_transforms
from open_flamingo.src.flamingo import Flamingo

# the model comes first: those below import it
from open_flamingo.instruction_tuning.build import load  # isort: skip
from open_flamingo.instruction_tuning.checkpoint import load_checkpoints  # isort: skip
from open_flamingo.instruction_tuning.tuning import prepare_model_for_tuning  # isort: skip

__all__ = ["Flamingo", "create_model_and_transforms", "load", "load_checkpoints", "prepare_model_for_tuning"]
