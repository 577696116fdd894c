"""One question on the command line, and chats: piped in, and typed at a terminal."""

import codecs
import contextlib
import io
import json
import os
import pty
import select
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest
from toy import TEXT_ONLY

from instruction_dataset.check import main as check
from instruction_dataset.formats import parse_row
from instruction_dataset.records import image_tag
from open_flamingo.instruction_tuning.ask import COMMANDS, completions, main, path_of
from open_flamingo.instruction_tuning.chat import Chat, to_row
from open_flamingo.instruction_tuning.data.conversation import Conversation
from open_flamingo.instruction_tuning.generation import Settings
from open_flamingo.instruction_tuning.inferencer import Inferencer

GREEDY = Settings(max_new_tokens=128)
SUN = TEXT_ONLY[0]["input"]
PROMPT = "you> "
UNIFORM = ["--do_sample", "--temperature", "1e6", "--top_k", "0", "--top_p", "1", "--max_new_token", "3000"]
"""Each token is as likely as any other."""
ENDLESS_SEED = 7233
"""Of uniform draws from the 402 tokens but `<image>`: only the 1,733rd ends the answer."""
SILENT_SEED = 325
"""The first ends it."""


@pytest.fixture
def checkpoint(toy_run) -> str:
    return str(toy_run / "checkpoint_0.pt")


@pytest.fixture(scope="module")
def inferencer(toy_run) -> Inferencer:
    return Inferencer(str(toy_run / "checkpoint_0.pt"))


@pytest.fixture
def chat_about(checkpoint, monkeypatch, capsys):
    """Pipes lines into a chat in this process: its exit code, and what it wrote to stdout and stderr."""

    def chat(*lines: str, flags: Sequence[str] = ()) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code = main(["--checkpoint", checkpoint, *flags])
        return code, *capsys.readouterr()

    return chat


# one question


@pytest.mark.parametrize("colors", [["red"], ["red", "blue"]])
def test_the_answer_is_the_one_line_that_is_printed(checkpoint, pictures, capsys, colors):
    images = [argument for color in colors for argument in ("--image", str(pictures / f"{color}.png"))]
    assert main(["--checkpoint", checkpoint, *images, "Which colour?"]) == 0
    assert capsys.readouterr().out == " ".join(colors) + "\n"


def test_a_question_needs_no_image(checkpoint, capsys):
    main(["--checkpoint", checkpoint, "--max_new_token", "8", SUN])
    assert capsys.readouterr().out == "A star.\n"


def test_a_question_that_is_not_utf_8_is_answered_as_the_same_line_of_a_chat_is(checkpoint, capsys):
    for question in (os.fsdecode(b"caf\xe9?"), b"caf\xe9?".decode(errors="replace")):
        assert main(["--checkpoint", checkpoint, "--max_new_token", "8", question]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_beams_and_seeds_answer_too(checkpoint, capsys):
    drawn = ["--do_sample", "--seed", "1", "--temperature", "9", "--top_k", "0"]
    for flags in (["--num_beams", "2"], drawn, drawn):
        main(["--checkpoint", checkpoint, "--max_new_token", "8", *flags, SUN])
    searched, *others = capsys.readouterr().out.splitlines()
    assert searched == "A star."
    assert others[0] == others[1]


def test_a_missing_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint .*nowhere\.pt does not exist"):
        main(["--checkpoint", str(tmp_path / "nowhere.pt"), "Which colour?"])


def test_a_missing_image_is_refused_before_the_model_is_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"image nowhere\.png does not exist"):
        main(["--checkpoint", str(tmp_path / "nowhere.pt"), "--image", "nowhere.png", "Which colour?"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--checkpoint"),
        (["--checkpoint", "x.pt", "--top_k", "3"], "--top_k is of sampling: give --do_sample with it"),
        (["--checkpoint", "x.pt", "--num_beams", "0"], "num_beams must be at least 1"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        main([*flags, "Which colour?"])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_the_help_shows_every_command_of_a_chat(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


# the conversation


def test_a_history_is_what_training_makes_of_the_same_turns(inferencer, pictures):
    chat = Chat()
    chat.attach(pictures / "red.png")
    chat.add(chat.message("Which colour?"), "red")
    prompt = chat.prompt(chat.message("And why <image>?"), inferencer.turns)
    chat.add("And why <image>?", "So.")
    trained = Conversation()
    trained.extend(inferencer.turns.turns(parse_row(to_row(chat.turns)), first=True))
    answer = [*inferencer.turns.encode("So."), inferencer.turns.eos]
    assert [*prompt.ids, *answer] == trained.ids
    assert prompt.images == trained.images == [str(pictures / "red.png")]


def test_a_first_message_is_the_prompt_of_one_question(inferencer, pictures):
    chat = Chat()
    for color in ("red", "blue"):
        chat.attach(pictures / f"{color}.png")
    asked = chat.prompt(chat.message("Which <image> colour?"), inferencer.turns)
    text = "### Human: <image><image>Which \\<image> colour?\n### Assistant: "
    assert asked == inferencer.encode(text, [str(pictures / "red.png"), str(pictures / "blue.png")])


@pytest.mark.parametrize(
    "turns",
    [
        [("Hello", "Hi")],
        [(f"{image_tag('/a.png')}{image_tag('/b c.png')}An <image>?", "Two"), ("Why <image>?", "So."), ("é", "### x")],
    ],
)
def test_a_conversation_is_read_back_as_it_was_said(turns, tmp_path):
    Chat(turns).save(tmp_path / "chat.json")
    (row,) = json.loads((tmp_path / "chat.json").read_text())
    assert list(parse_row(row).turns) == turns


def test_a_conversation_is_written_over_its_own_file_and_no_other(tmp_path):
    chat, path = Chat([("Hello", "Hi")]), tmp_path / "chat.json"
    chat.save(path)
    chat.add("More", "Yes")
    chat.save(path)
    assert len(json.loads(path.read_text())[0]["messages"]) == 4
    with pytest.raises(ValueError, match=r"chat\.json exists already; name a new file"):
        Chat([("Hello", "Hi")]).save(path)


@pytest.mark.parametrize(
    ("turns", "name", "message"),
    [
        ([], "chat.json", "nothing was said yet"),
        ([("Hello", "Hi")], "chat.parquet", "name a file that ends in .json"),
        ([("Hello", "Hi"), ("Go on", "<img_path>")], "chat.json", "holds '<img_path>'"),
    ],
)
def test_what_no_file_of_records_can_hold_is_not_saved(turns, name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Chat(turns).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_told_of_by_the_name_that_was_given():
    with pytest.raises(ValueError, match=r"^/proc/chat\.json cannot be written \(No such file or directory\)"):
        Chat([("Hello", "Hi")]).save(Path("/proc/chat.json"))


def test_a_message_cannot_name_an_image_by_itself():
    with pytest.raises(ValueError, match="a message cannot hold '<img_path>'"):
        Chat().message("<img_path>/etc/x.png<img_path>Which colour?")


# paths


@pytest.mark.parametrize("typed", ["{}", "'{}'", '"{}"', "{escaped}"])
def test_a_path_may_be_quoted_as_in_a_shell(tmp_path, typed):
    path = tmp_path / "it has spaces.png"
    path.touch()
    assert path_of(typed.format(path, escaped=str(path).replace(" ", r"\ "))) == path


def test_a_path_may_hold_an_apostrophe_or_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of("bob's cat.png") == Path("bob's cat.png")
    assert path_of("~/cat.png") == path_of("'~/cat.png'") == tmp_path / "cat.png"
    assert path_of("~nobody-of-this-name/cat.png") == Path("~nobody-of-this-name/cat.png")


def test_commands_and_paths_are_completed(pictures):
    assert completions("/c") == ["/clear"]
    assert completions("/i") == ["/image "]
    assert completions("hello") == completions("") == completions("/clear ") == []
    assert completions(f"/image {pictures}/r") == [f"/image {pictures}/red.png"]
    assert f"/save {pictures}/" in completions(f"/save {str(pictures)[:-1]}")


# a chat from a pipe


def test_a_piped_chat_answers_each_line_on_stdout_and_ends_with_its_input(checkpoint, inferencer, pictures, tmp_path):
    saved = tmp_path / "chat.json"
    lines = [SUN, "", f"/image {pictures}/red.png", "Which colour?", f"/save {saved}", "/clear", SUN]
    command = [sys.executable, "-m", "open_flamingo.instruction_tuning.ask", "--checkpoint", checkpoint]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, timeout=300, check=True)
    messages = [SUN, image_tag(f"{pictures}/red.png") + "Which colour?"]
    chat = Chat()
    for message in messages:
        (answer,) = inferencer.answer([chat.prompt(message, inferencer.turns)], GREEDY)
        chat.add(message, answer.text)
    assert list(parse_row(json.loads(saved.read_text())[0]).turns) == chat.turns
    assert done.stdout == "".join(f"{answer}\n" for _, answer in [*chat.turns, (SUN, "A star.")])
    assert done.stderr == f"red.png, 40 x 32, goes with the next message\nsaved {saved}\n"
    assert check([str(saved)]) == 0


def test_what_is_refused_is_told_and_loses_nothing(chat_about, pictures, tmp_path):
    code, out, err = chat_about(
        f"/image '{pictures / 'red.png'}'",
        f"/image {tmp_path}/nowhere.png",
        f"/image {tmp_path}",
        "/image",
        "/imagine a cat",
        "/quit smoking, or not?",
        "<img_path>",
        f"/save {tmp_path}/chat.json",
        "Which colour?",
        "/quit",
        "never asked",
    )
    _, missing, folder, bare, unknown, argument, tag, early = err.splitlines()
    assert (code, out) == (1, "red\n")
    assert missing == f"image {tmp_path}/nowhere.png does not exist"
    assert folder.startswith(f"image {tmp_path} cannot be read")
    assert bare == "/image needs a path behind it"
    assert unknown.startswith("/imagine a cat is no command; there are /image PATH, /clear, ")
    assert argument.startswith("/quit smoking, or not? is no command")
    assert tag.startswith("a message cannot hold '<img_path>'")
    assert early.startswith("nothing was said yet")


def test_two_slashes_begin_a_message_with_one(chat_about, inferencer, tmp_path):
    chat_about("//help me", "/help", f"/save {tmp_path}/chat.json")
    (row,) = json.loads((tmp_path / "chat.json").read_text())
    (expected,) = inferencer.answer([inferencer.encode("### Human: /help me\n### Assistant: ")], GREEDY)
    assert row == {"input": "/help me", "output": expected.text}


def test_clearing_forgets_the_turns_and_the_images(chat_about, pictures):
    code, out, _ = chat_about(
        f"/image {pictures}/red.png", "/clear", SUN, "/clear", "Which colour?", flags=["--image", f"{pictures}/red.png"]
    )
    assert code == 0
    assert out.startswith("A star.\n")
    assert out != "A star.\nred\n"


def test_a_picture_on_the_command_line_goes_with_the_first_message(chat_about, pictures):
    assert chat_about("Which colour?", flags=["--image", f"{pictures}/blue.png"]) == (0, "blue\n", "")


def test_a_message_without_an_answer_is_no_turn_and_keeps_its_images(chat_about, pictures, tmp_path):
    drawn = [*UNIFORM, "--seed", str(SILENT_SEED), "--image", f"{pictures}/red.png"]
    _, out, err = chat_about("Hello", f"/save {tmp_path}/0.json", "Again", f"/save {tmp_path}/1.json", flags=drawn)
    assert out.startswith("\n")
    assert err.splitlines()[0].startswith("no answer: ")
    assert err.splitlines()[1].startswith("nothing was said yet")
    (row,) = json.loads((tmp_path / "1.json").read_text())
    assert row["input"] == image_tag(f"{pictures}/red.png") + "Again"


# a chat at a terminal

PATIENCE = 120
"""Seconds that a chat may take to show something."""


class Terminal:
    """A chat in a process of its own that has a terminal, with its keys and its screen."""

    def __init__(self, *flags: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            command = [sys.executable, "-m", "open_flamingo.instruction_tuning.ask", *flags]
            os.execve(sys.executable, command, os.environ | {"NO_COLOR": "1", "TERM": "dumb"})
        modes = termios.tcgetattr(self.fd)
        modes[3] |= termios.NOFLSH  # Ctrl-C loses nothing that is under way to the screen
        termios.tcsetattr(self.fd, termios.TCSANOW, modes)
        termios.tcsetwinsize(self.fd, (24, 1000))  # no line is wrapped or scrolled
        self.screen, self.decoder = "", codecs.getincrementaldecoder("utf-8")("replace")

    def watch(self) -> None:
        """Wait until more is shown."""
        assert select.select([self.fd], [], [], PATIENCE)[0], f"nothing more is shown after {self.screen!r}"
        self.screen += self.decoder.decode(os.read(self.fd, 4096)).replace("\r", "")

    def wait_for(self, text: str) -> str:
        """All that is shown until `text` is, without what was shown before."""
        while text not in self.screen:
            self.watch()
        shown, _, self.screen = self.screen.partition(text)
        return shown

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def leave_line(self) -> None:
        """Ctrl-C at a prompt; in the moment between showing it and waiting for keys, Python's `input` misses one."""
        for _ in range(PATIENCE // 3):
            self.type("\x03")
            if select.select([self.fd], [], [], 3)[0]:
                return
        raise AssertionError(f"Ctrl-C shows nothing after {self.screen!r}")

    def say(self, line: str) -> str:
        """What is shown after a line until the next prompt."""
        self.type(f"{line}\r")
        self.wait_for(f"{line}\n")
        return self.wait_for(PROMPT)

    def end(self) -> tuple[int, str]:
        """The exit code, and what was shown last."""
        with contextlib.suppress(OSError):  # raised at the end of a terminal
            while True:
                self.watch()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        return code, self.screen


def test_a_chat_at_a_terminal_shows_a_prompt_completes_paths_and_ends_with_ctrl_d(checkpoint, pictures):
    terminal = Terminal("--checkpoint", checkpoint)
    assert terminal.wait_for(PROMPT) == "Type a message, or /help. Ctrl-D ends.\n"
    terminal.type(f"/image {pictures}/re\t")
    terminal.wait_for("/red.png")
    assert terminal.say("") == "red.png, 40 x 32, goes with the next message\n"
    assert terminal.say("Which colour?") == "red\n"
    terminal.type("\x1b[A\x1b[A")  # two lines up in the history
    terminal.wait_for("red.png")
    terminal.say("")
    terminal.say("/clear")
    assert terminal.say(SUN) == "A star.\n"
    terminal.type("\x04")
    assert terminal.end() == (0, "\n")


def test_ctrl_c_ends_an_answer_or_a_line_and_on_an_empty_line_the_chat(checkpoint, tmp_path):
    terminal = Terminal("--checkpoint", checkpoint, *UNIFORM, "--seed", str(ENDLESS_SEED))
    terminal.wait_for(PROMPT)
    terminal.type("Go on.\r")
    terminal.wait_for("Go on.\n")
    terminal.watch()  # the first word
    terminal.type("\x03")
    shown = terminal.wait_for(PROMPT)
    terminal.say("And now?")
    assert terminal.say(f"/save {tmp_path}/chat.json") == f"saved {tmp_path}/chat.json\n"
    (stopped, further) = parse_row(json.loads((tmp_path / "chat.json").read_text())[0]).turns
    assert stopped[0] == "Go on."
    assert stopped[1].replace("\r", "") == shown.replace("^C", "").removesuffix("\n")
    assert further[0] == "And now?"
    terminal.type("half a message")
    terminal.wait_for("half a message")
    terminal.leave_line()
    terminal.wait_for(PROMPT)
    terminal.leave_line()
    assert terminal.end()[0] == 0
