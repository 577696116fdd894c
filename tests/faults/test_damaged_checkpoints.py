"""A damaged checkpoint is stepped over; where none is whole the run is refused, and nothing is removed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from launch import names, only_error


def truncate(path: Path) -> None:
    """Cut the last third off."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flip(path: Path) -> None:
    """Change one bit amid the tensors."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    """Leave nothing of it."""
    path.write_bytes(b"")


DAMAGES: dict[str, Callable[[Path], None]] = {"truncated": truncate, "with a flipped bit": flip, "empty": empty}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_stepped_over_and_named(half, go_on, ends_like_the_reference, damage):
    DAMAGES[damage](half / "checkpoint_step6.pt")
    job = go_on(half)
    warnings = [line for line in job.stderr.splitlines() if " WARNING " in line]
    assert [str(half / "checkpoint_step6.pt") in line for line in warnings] == [True]
    assert f"going on from {half / 'checkpoint_0.pt'} after 4 steps" in job.stderr
    ends_like_the_reference(half)


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_keeps_them(launch, flags, half):
    for damage, path in zip(DAMAGES.values(), sorted(half.glob("checkpoint_*.pt")), strict=True):
        damage(path)
    before = {path.name: path.read_bytes() for path in half.glob("checkpoint_*.pt")}
    job = launch([*flags, "--continue_training"], half).wait()
    assert {path.name: path.read_bytes() for path in half.glob("checkpoint_*.pt")} == before
    assert f"no checkpoint of {half} is whole" in only_error(job)


def test_a_run_is_not_written_over_another_by_accident(launch, flags, half):
    before = names(half)
    job = launch(flags, half).wait()
    assert f"{half} already holds checkpoint_0.pt: go on with it" in only_error(job)
    assert names(half) == before
