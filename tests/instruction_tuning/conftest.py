"""What tests of training and inference share."""

from collections.abc import Iterator

import pytest
from toy import kept_logging


@pytest.fixture(autouse=True)
def logging_kept() -> Iterator[None]:
    """Commands set up logging for their whole process: undo it after each test."""
    with kept_logging():
        yield
