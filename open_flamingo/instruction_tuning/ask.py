"""Ask a fine-tuned model about images: `python -m open_flamingo.instruction_tuning.ask --help`."""

import argparse
import logging
import sys
from collections.abc import Sequence

from transformers.utils.logging import disable_progress_bar

from open_flamingo.instruction_tuning.command import run
from open_flamingo.instruction_tuning.data.prompts import escape, format_prompt
from open_flamingo.instruction_tuning.inferencer import Inferencer
from open_flamingo.src.factory import MEDIA_TOKEN


def main(argv: Sequence[str] | None = None) -> int:
    """Print the answer to one question; see `--help`."""
    parser = argparse.ArgumentParser(
        description="Ask a fine-tuned model one question.",
        epilog="example: ask --checkpoint runs/quickstart/checkpoint_0.pt --image x.png 'Which digit is shown?'",
    )
    parser.add_argument("question")
    parser.add_argument("--checkpoint", required=True, help="checkpoint of a training run, or several with commas")
    parser.add_argument("--image", action="append", default=[], help="an image to ask about; may be repeated")
    parser.add_argument("--max_new_token", type=int, default=128, help="tokens to generate at most")
    parser.add_argument("--num_beams", type=int, default=1, help="beams to search with")
    parser.add_argument("--do_sample", action="store_true", help="sample instead of taking the likeliest answer")
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    disable_progress_bar()
    inferencer = Inferencer(args.checkpoint)
    prompt = format_prompt(MEDIA_TOKEN * len(args.image) + escape(args.question), inferencer.template)
    (response,), _ = inferencer(
        prompt,
        args.image,
        max_new_token=args.max_new_token,
        num_beams=args.num_beams,
        do_sample=args.do_sample,
    )
    sys.stdout.write(f"{response}\n")
    return 0


if __name__ == "__main__":
    run(main)
