"""Flags out of dataclasses, and how a command ends: exit codes 0, 1, 2 and 130, and one line for a user's error."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from open_flamingo.instruction_tuning.command import flag, parse, run


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of every kind."""

    folder: Path = flag("where")
    count: int = flag("how many", 3)
    rate: float = flag("how fast", 0.5)
    name: str | None = flag("what it is called", None, aliases=["--nmae"])
    mode: Literal["a", "b"] = flag("which", "a")
    sample: bool = flag("whether", True)
    maybe: bool | None = flag("perhaps", None)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("--count must not be negative")


def parsed(*argv: str) -> Flags:
    """The flags of a command line with the required flag."""
    (flags,) = parse("A command.", [Flags], ["--folder", "x", *argv])
    return flags


def test_a_flag_that_is_not_given_has_its_default():
    assert parsed() == Flags(folder=Path("x"))


def test_flags_have_the_types_of_their_fields():
    flags = parsed("--count", "7", "--rate", "1e-4", "--name", "me", "--mode", "b", "--maybe", "false")
    assert flags == Flags(folder=Path("x"), count=7, rate=1e-4, name="me", mode="b", maybe=False)


def test_an_alias_is_another_spelling_of_the_flag():
    assert parsed("--nmae", "me").name == "me"


@pytest.mark.parametrize("text", ["False", "false", "FALSE", "0", "no"])
def test_a_boolean_flag_set_to_false_is_false(text):
    assert parsed("--sample", text).sample is False


@pytest.mark.parametrize("argv", [["--sample"], ["--sample", "True"], ["--sample", "1"], ["--sample=yes"]])
def test_a_boolean_flag_alone_or_set_to_true_is_true(argv):
    assert parsed(*argv).sample is True


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--count", "many"], "argument --count: invalid int value: 'many'"),
        (["--mode", "c"], "argument --mode: invalid choice: 'c'"),
        (["--sample", "perhaps"], "argument --sample: expected true or false, not 'perhaps'"),
        (["--count", "-1"], "--count must not be negative"),
        (["--cou", "1"], "unrecognized arguments: --cou 1"),
    ],
)
def test_a_bad_flag_ends_with_code_2_and_names_the_flag(capsys, argv, message):
    with pytest.raises(SystemExit) as end:
        parsed(*argv)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_required_flag_ends_with_code_2_and_is_named(capsys):
    with pytest.raises(SystemExit) as end:
        parse("A command.", [Flags], [])
    assert end.value.code == 2
    assert "--folder" in capsys.readouterr().err


def test_help_shows_each_flag_with_its_help_and_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        parsed("--help")
    out = capsys.readouterr().out
    assert end.value.code == 0
    for text in ("--folder PATH", "how many (default: 3)", "--nmae", "--sample [true|false]", "Flags of every kind"):
        assert text in out
    assert "MISSING" not in out
    assert "None" not in out


def ends_with(error: BaseException):
    """A command that ends with `error`."""

    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize("error", [ValueError("the file is wrong"), FileNotFoundError("the file is wrong")])
def test_a_users_error_is_one_line_and_code_1(capsys, error):
    with pytest.raises(SystemExit) as end:
        run(ends_with(error))
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: the file is wrong\n"


def test_a_keyboard_interrupt_is_code_130(capsys):
    with pytest.raises(SystemExit) as end:
        run(ends_with(KeyboardInterrupt()))
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run(ends_with(ZeroDivisionError()))


@pytest.mark.parametrize(("result", "code"), [(0, 0), (None, None), (3, 3)])
def test_the_result_of_a_command_is_its_exit_code(result, code):
    with pytest.raises(SystemExit) as end:
        run(lambda: result)
    assert end.value.code == code
