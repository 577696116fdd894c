"""Ask a fine-tuned model about images, or chat with it: `python -m open_flamingo.instruction_tuning.ask --help`."""

import argparse
import io
import logging
import os
import random
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from transformers.utils.logging import disable_progress_bar

from instruction_dataset.dialogue import ASSISTANT, HUMAN
from open_flamingo.instruction_tuning.chat import Chat
from open_flamingo.instruction_tuning.command import run
from open_flamingo.instruction_tuning.generation import Prompt, Settings
from open_flamingo.instruction_tuning.inferencer import Inferencer

COMMANDS = {
    "/image": ("PATH", "attach a picture to the next message; several may be"),
    "/clear": ("", "begin a new conversation"),
    "/save": ("PATH", "write the conversation to a .json file, as a record of instruction data"),
    "/help": ("", "list these commands"),
    "/quit": ("", "end, as Ctrl-D does"),
}
"""What a line of a chat may begin with: the argument, and what it does."""
HELP = "\n".join(
    f"  {typed:<12} {about}"
    for typed, about in (
        *((f"{name} {argument}", about) for name, (argument, about) in COMMANDS.items()),
        ("//TEXT", "say a text that begins with /"),
        ("Ctrl-C", "stop an answer, or drop a line; on an empty line: end"),
    )
)
EXAMPLES = """examples:
  %(prog)s --checkpoint runs/x/checkpoint_0.pt --image x.png 'Which digit is shown?'
  %(prog)s --checkpoint runs/x/checkpoint_0.pt
  printf '/image x.png\\nWhich digit is shown?\\n' | %(prog)s --checkpoint runs/x/checkpoint_0.pt"""
PROMPT = "you> "
BOLD_PROMPT = "\001\033[1m\002you>\001\033[0m\002 "
"""What readline must not count as characters stands between the bytes 1 and 2."""
SAMPLING = {"temperature": 1.0, "top_k": 20, "top_p": 0.9}
"""How answers are drawn unless it is said otherwise."""
NO_REPEAT = 3
"""A single answer repeats no so many tokens; in a chat an answer may say again what was said before."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the answer to one question, or chat; see `--help`."""
    parser = _parser()
    args = parser.parse_args(argv)
    settings = _settings(parser, args)
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    logging.disable(logging.WARNING)
    disable_progress_bar()
    chat = Chat()
    for path in args.image:
        chat.attach(path)
    seed = random.randrange(2**31) if args.seed is None else args.seed
    inferencer = Inferencer(args.checkpoint, precision=args.precision)
    if args.question is not None:
        # bytes that are no UTF-8 are replaced as they are in a line that is typed
        question = args.question.encode(errors="surrogateescape").decode(errors="replace")
        say(inferencer, chat.prompt(chat.message(question), inferencer.turns), settings, seed)
        return 0
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if is_terminal:
        _note("Type a message, or /help. Ctrl-D ends.")
    session = Session(inferencer, settings, seed, chat, is_terminal=is_terminal)
    return session.run(typed_lines() if is_terminal else sys.stdin)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m open_flamingo.instruction_tuning.ask",
        description="Ask a fine-tuned model one question, or, without a question, chat with it.",
        epilog=f"in a chat:\n{HELP}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("question", nargs="?", help="not given: a chat, or, from a pipe, one message a line")
    parser.add_argument("--checkpoint", required=True, help="checkpoint of a training run, or several with commas")
    parser.add_argument(
        "--image", type=Path, action="append", default=[], help="a picture for the first message; may be repeated"
    )
    parser.add_argument("--max_new_token", type=int, default=128, help="tokens of an answer, at most (default: 128)")
    parser.add_argument("--num_beams", type=int, default=1, help="beams to search with; above 1 answers come whole")
    parser.add_argument("--do_sample", action="store_true", help="sample instead of taking the likeliest answer")
    for name, default in SAMPLING.items():
        parser.add_argument(f"--{name}", type=type(default), help=f"of sampling (default: {default})")
    parser.add_argument("--seed", type=int, help="of sampling; not given: another each time")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="arithmetic (default: fp32)")
    return parser


def _settings(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Settings:
    given = {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
    if given and not args.do_sample:
        parser.error(f"--{next(iter(given))} is of sampling: give --do_sample with it, or leave it out")
    try:
        return Settings(
            max_new_tokens=args.max_new_token,
            num_beams=args.num_beams,
            do_sample=args.do_sample,
            no_repeat_ngram_size=0 if args.question is None else NO_REPEAT,
            stop=(HUMAN.strip(), ASSISTANT.strip()),
            **(SAMPLING | given),
        )
    except ValueError as error:
        parser.error(str(error))


class Session:
    """A chat with a model: answers go to stdout, all else to stderr."""

    def __init__(self, inferencer: Inferencer, settings: Settings, seed: int, chat: Chat, *, is_terminal: bool) -> None:
        self.inferencer, self.settings, self.seed, self.chat = inferencer, settings, seed, chat
        self.is_terminal = is_terminal

    def run(self, lines: Iterable[str]) -> int:
        """Follow lines until they or the chat end; 1 where one that was not typed at a terminal was refused."""
        was_refused = False
        for line in lines:
            try:
                if not self.follow(line.strip()):
                    break
            except (ValueError, OSError) as error:
                _note(str(error))
                was_refused = True
        return int(was_refused and not self.is_terminal)

    def follow(self, line: str) -> bool:
        """Answer a message or do as a command says; false where that ends the chat."""
        if not line.startswith("/") or line.startswith("//"):
            if line:
                self.answer(line.removeprefix("/"))
            return True
        command, argument = _parse(line)
        match command:
            case "/image":
                path = path_of(argument)
                width, height = self.chat.attach(path)
                _note(f"{path.name}, {width} x {height}, goes with the next message")
            case "/clear":
                self.chat = Chat()
            case "/save":
                self.chat.save(path_of(argument))
                _note(f"saved {argument}")
            case "/help":
                _note(HELP)
        return command != "/quit"

    def answer(self, text: str) -> None:
        """Answer a message; one without an answer, which no training data holds, is no turn."""
        message = self.chat.message(text)
        prompt = self.chat.prompt(message, self.inferencer.turns)
        answer = say(self.inferencer, prompt, self.settings, self.seed, may_stop=self.is_terminal)
        self.seed += 1
        if answer:
            self.chat.add(message, answer)
        else:
            _note("no answer: the conversation stands where it stood before this message")


def say(inferencer: Inferencer, prompt: Prompt, settings: Settings, seed: int, *, may_stop: bool = False) -> str:
    """Put an answer on stdout, on a terminal while it is made; if it `may_stop`, Ctrl-C ends it as far as it came."""
    heard: list[str] = []

    def hear(piece: str) -> None:
        heard.append(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()

    streams = sys.stdout.isatty() and settings.num_beams == 1
    try:
        (answer,) = inferencer.answer([prompt], settings, [seed], hear={0: hear} if streams else None)
        if not streams:
            hear(answer.text)
    except KeyboardInterrupt:
        if not may_stop:
            raise
    sys.stdout.write("\n")
    sys.stdout.flush()
    return "".join(heard)


def typed_lines() -> Iterator[str]:
    """What is typed at a terminal, until Ctrl-D or, on an empty line, Ctrl-C."""
    editor = _line_editor()
    is_bold = editor is not None and not os.environ.get("NO_COLOR")
    prompt = BOLD_PROMPT if is_bold else PROMPT
    while True:
        try:
            line = input(prompt)
        except EOFError:
            break
        except KeyboardInterrupt:
            if editor is None or not editor.get_line_buffer():
                break
            sys.stdout.write("\n")
            continue
        yield line
    sys.stdout.write("\n")


def _line_editor() -> ModuleType | None:
    """Python's `readline`, where there is one, which `input` then uses: a history, and completion by the tab key."""
    try:
        import readline
    except ImportError:
        return None
    readline.set_completer_delims("")
    readline.set_completer(lambda line, number: dict(enumerate(completions(line))).get(number))
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    return readline


def completions(line: str) -> list[str]:
    """What a line of a chat may go on to be: commands, and behind them paths."""
    command, space, typed = line.partition(" ")
    if not space:
        found = [f"{name} " if argument else name for name, (argument, _) in COMMANDS.items()]
        return [whole for whole in found if line and whole.startswith(line)]
    if command not in COMMANDS or not COMMANDS[command][0]:
        return []
    folder, start = os.path.split(_at_home(typed))
    paths = sorted(path for path in Path(folder).glob("*") if path.name.startswith(start))
    before = f"{command} {_at_home(typed).removesuffix(start)}"
    return [f"{before}{path.name}{'/' if path.is_dir() else ''}" for path in paths]


def path_of(text: str) -> Path:
    """The path that was typed: as it is where there is such a file, else without quotes, as a shell understands it."""
    if Path(_at_home(text)).exists():
        return Path(_at_home(text))
    try:
        words = shlex.split(text)
    except ValueError:  # an apostrophe, not a quote
        words = []
    return Path(_at_home(words[0] if len(words) == 1 else text))


def _at_home(path: str) -> str:
    return os.path.expanduser(path)  # noqa: PTH111 - leaves a user that it does not know as it is


def _parse(line: str) -> tuple[str, str]:
    """A command and its argument; ValueError where there is no such command."""
    command, _, argument = line.partition(" ")
    if command not in COMMANDS or (argument and not COMMANDS[command][0]):
        names = ", ".join(f"{name} {path}".strip() for name, (path, _) in COMMANDS.items())
        raise ValueError(f"{line} is no command; there are {names}, and // begins a message that begins with /")
    if COMMANDS[command][0] and not argument.strip():
        raise ValueError(f"{command} needs a path behind it")
    return command, argument.strip()


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    run(main)
