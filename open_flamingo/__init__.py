"""Instruct-Flamingo: fine-tune and serve Flamingo-style multi-modal language models."""

from open_flamingo.src.factory import create_model_and_transforms
from open_flamingo.src.flamingo import Flamingo

__all__ = ["Flamingo", "create_model_and_transforms"]
