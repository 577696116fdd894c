"""One question on the command line: the answer is the one line on stdout."""

import pytest

from open_flamingo.instruction_tuning.ask import main


@pytest.mark.parametrize("colors", [["red"], ["red", "blue"]])
def test_the_answer_is_the_one_line_that_is_printed(toy_run, pictures, capsys, colors):
    images = [argument for color in colors for argument in ("--image", str(pictures / f"{color}.png"))]
    assert main(["--checkpoint", str(toy_run / "checkpoint_0.pt"), *images, "Which colour?"]) == 0
    assert capsys.readouterr().out == " ".join(colors) + "\n"


def test_a_question_needs_no_image(toy_run, capsys):
    main(["--checkpoint", str(toy_run / "checkpoint_0.pt"), "--max_new_token", "8", "What is the sun?"])
    assert capsys.readouterr().out == "A star.\n"


def test_a_missing_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint .*nowhere\.pt does not exist"):
        main(["--checkpoint", str(tmp_path / "nowhere.pt"), "Which colour?"])


def test_a_checkpoint_is_required(capsys):
    with pytest.raises(SystemExit) as end:
        main(["Which colour?"])
    assert end.value.code == 2
    assert "--checkpoint" in capsys.readouterr().err
