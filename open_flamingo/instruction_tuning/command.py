"""Command lines out of frozen dataclasses: one field is one flag, with its help; and how a command ends."""

import argparse
import logging
import os
import sys
import threading
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any, Literal, Union, get_args, get_origin

from open_flamingo.instruction_tuning.distributed import launch_of

logger = logging.getLogger(__name__)

LOST_RANK = "stopped, since another rank has ended: that one says why"
FAULTS = {
    "Connection closed by peer": LOST_RANK,
    "Connection reset by peer": LOST_RANK,
    "Broken pipe": LOST_RANK,
    "DataLoader worker": "error: a process that loads data has died, often for lack of memory: lower --workers, then go"
    " on with --continue_training",
}
"""What PyTorch's errors of other processes contain, and what is said in their place."""


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
    logging.raiseExceptions = False  # a full disk is told of once, by what cannot do without it
    threading.excepthook = _log_failure  # and raised again by the call that waits for the thread
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        logger.debug("the command failed", exc_info=True)
        _end(f"error: {_sentence(error)}")
    except RuntimeError as error:
        if (sentence := next((said for part, said in FAULTS.items() if part in str(error)), None)) is None:
            raise
        logger.debug("the command failed", exc_info=True)
        _end(sentence)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


def _log_failure(failure: threading.ExceptHookArgs) -> None:
    logger.debug("a thread failed: %r", failure.exc_value)


def _end(sentence: str) -> None:
    rank = launch_of(os.environ).rank
    sys.stderr.write(f"[rank {rank}] {sentence}\n" if rank else f"{sentence}\n")
    sys.exit(1)


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
