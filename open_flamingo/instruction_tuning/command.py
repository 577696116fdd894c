"""Command lines out of frozen dataclasses: one field is one flag, with its help; and how a command ends."""

import argparse
import logging
import os
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any, Literal, Union, get_args, get_origin

logger = logging.getLogger(__name__)


def flag(help: str, default: Any = MISSING, *, aliases: Sequence[str] = ()) -> Any:
    """A dataclass field that is a command-line flag; without a default it is required."""
    return field(default=default, metadata={"help": help, "aliases": tuple(aliases)})


def parse(description: str, configs: Sequence[type], argv: Sequence[str] | None) -> list[Any]:
    """Parse `argv` into one instance of each dataclass of `configs`; bad flags end the process with code 2."""
    parser = argparse.ArgumentParser(description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
    for config in configs:
        group = parser.add_argument_group(str(config.__doc__).rstrip("."))
        for f in fields(config):
            _add_flag(group, f)
    values = vars(parser.parse_args(argv))
    try:
        return [config(**{f.name: values[f.name] for f in fields(config)}) for config in configs]
    except ValueError as error:
        parser.error(str(error))


def run(main: Callable[[], int | None]) -> None:
    """Run a command and exit: 0 well, 1 with one sentence on a user's error, 130 on Ctrl-C."""
    warnings.simplefilter("ignore", FutureWarning)  # what libraries plan is not for the user to act on
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        logger.debug("the command failed", exc_info=True)
        rank = os.environ.get("RANK", "0")
        sys.stderr.write(f"{'' if rank == '0' else f'[rank {rank}] '}error: {_sentence(error)}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


def _sentence(error: Exception) -> str:
    # an error of a loader worker arrives as the worker's whole traceback
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if text.startswith("Caught ") else text


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, MISSING) else super()._get_help_string(action)


def _add_flag(group: argparse._ArgumentGroup, f: Field) -> None:
    options: dict[str, Any] = {"dest": f.name, "help": f.metadata["help"]}
    if f.default is MISSING:
        options["required"] = True
    else:
        options["default"] = f.default
    kind = _without_none(f.type)
    if kind is bool:
        options |= {"type": _boolean, "nargs": "?", "const": True, "metavar": "true|false"}
    elif get_origin(kind) is Literal:
        options["choices"] = get_args(kind)
    else:
        options |= {"type": kind, "metavar": kind.__name__.upper()}
    group.add_argument(f"--{f.name}", *f.metadata["aliases"], **options)


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (k for k in get_args(kind) if k is not type(None))
    return kind


def _boolean(text: str) -> bool:
    answers = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in answers:
        raise argparse.ArgumentTypeError(f"expected true or false, not {text!r}")
    return answers[text.lower()]
