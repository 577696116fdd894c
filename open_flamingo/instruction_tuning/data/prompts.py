"""The prompt templates, byte for byte those of the 2023 checkpoints. Nothing else spells `### Human:`."""

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.\n"
)
HUMAN = "### Human: "
ASSISTANT = "\n### Assistant: "

TEMPLATES = {"guanaco": SYSTEM + HUMAN, "guanaco-no-prompt": HUMAN}
"""What stands before the first instruction of a conversation, by template name."""

NEXT_TURN = "\n" + HUMAN
"""What stands before every further instruction."""


def format_prompt(instruction: str, template: str) -> str:
    """The prompt of a one-turn conversation: the answer follows it directly."""
    return TEMPLATES[template] + instruction + ASSISTANT
