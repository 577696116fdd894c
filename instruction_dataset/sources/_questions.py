"""What sources of questions share: prompts, one of which is drawn for each record, and answers as sentences."""

from collections.abc import Sequence
from random import Random

SHORT_ANSWER = (
    "Answer in a word or two.",
    "Give a short answer.",
    "Keep the answer brief.",
    "A word or a short phrase is enough.",
    "Reply with as few words as you can.",
    "Answer briefly, please.",
    "Be brief.",
    "Please answer directly.",
    "Give only the answer.",
    "Answer without explanation.",
    "No need to explain; just answer.",
    "Use a single word or a short phrase.",
    "Respond concisely.",
    "A concise answer will do.",
    "Tell me in a few words.",
    "Say it shortly.",
    "I only need a quick answer.",
    "Answer to the point.",
    "Leave out the details.",
    "One short sentence at most.",
)
"""Sentences that go before a question, or after it."""

REGION = (
    "Describe what is in the region {}.",
    "What is in the region {}?",
    "What does the region {} show?",
    "What can be seen in the region {}?",
    "Describe the object in the region {} so that it can be told from all others.",
    "How would you refer to what is in the region {}?",
    "Give a short description of the region {}.",
    "Which object is in the region {}?",
    "Look at the region {}. What is there?",
    "Look at the region {} and say what you see.",
    "Here is a region of the image: {}. Describe it.",
    "Here is a region of the image: {}. What does it hold?",
    "Write a phrase that refers to the region {}.",
    "Tell me about the region {}.",
    "Name what the region {} contains.",
    "Someone points at the region {}. What do they mean?",
    "Take the region {}. What would you call it?",
    "In one sentence, what is in the region {}?",
)
"""With `{}` where the box, or the image of the region, goes."""

WEB_QUESTION = (
    "Answer the question about this web page.",
    "Read the web page and answer.",
    "This is a screenshot of a web page.",
    "Use the web page in the screenshot.",
    "The answer is on this web page.",
    "Find the answer on the page.",
    "Look it up on this page.",
    "Here is a web page, and a question about it.",
    "Please look at the screenshot and answer briefly.",
    "Go by what the page says.",
    "Use only what is written on the page.",
    "Answer from the screenshot.",
    "I have a question about this website.",
    "Please help me find something on this page.",
    "Search the page for the answer.",
    "Quote the page where you can.",
    "Answer with what the page shows.",
    "See the web page for the answer.",
    "Take the answer from the page.",
    "Check the web page and tell me.",
)
"""Sentences that go before a question about a web page, or after it."""

WEB_PAGE = (
    "Write the HTML of this web page.",
    "What is the HTML behind this page?",
    "Turn this screenshot into HTML.",
    "Rebuild this web page in HTML.",
    "Give the source code of the page in the screenshot.",
    "Convert the web page to HTML code.",
    "How could this page be written in HTML?",
    "Generate HTML that renders as this screenshot.",
    "Please produce the markup of this page.",
    "Reproduce the page as HTML.",
    "Show me the HTML code of this website.",
    "Transcribe the page into HTML.",
    "Write down the page's source.",
    "I need the HTML for this design.",
    "Code this web page in HTML.",
    "Which HTML makes a page like this?",
    "Recover the HTML from the picture of the page.",
    "Translate the screenshot into markup.",
    "Create an HTML document that looks like this.",
    "Derive the page's HTML from its screenshot.",
)

LATEX = (
    "Write this formula in LaTeX.",
    "Convert the handwriting to LaTeX.",
    "Transcribe the expression as LaTeX code.",
    "What is the LaTeX code of this expression?",
    "Turn the handwritten formula into LaTeX.",
    "Give the LaTeX source of what is written here.",
    "Read the formula and typeset it in LaTeX.",
    "How is this mathematical expression written in LaTeX?",
    "Recognize the handwritten mathematics and answer in LaTeX.",
    "Please digitize this formula as LaTeX.",
    "Express what you read in LaTeX.",
    "Type out the formula using LaTeX.",
)

THE_ANSWER = (
    "The answer is {}.",
    "The right answer is {}.",
    "The correct answer is {}.",
    "The answer should be {}.",
    "My answer is {}.",
    "I would answer {}.",
)
"""Sentences around an answer of one word."""

CLOSERS = (".", "!", "?", "…", "。", "！", "？")  # noqa: RUF001
"""What ends a sentence."""
QUOTES = "\"'”’)"  # noqa: RUF001
"""What may stand behind its end."""
PAUSES = ",;: "
"""What gives way to a full stop."""


def beside(text: str, prompts: Sequence[str], rng: Random) -> str:
    """A text with one of the prompts before it or after it, as likely."""
    prompt = rng.choice(prompts)
    return f"{prompt} {text}" if rng.random() < 0.5 else f"{text} {prompt}"


def as_sentence(text: str) -> str:
    """A text with a capital at its start and a full stop at its end, unless another mark ends it; empty stays empty."""
    text = text.strip()
    if text and not text.rstrip(QUOTES).endswith(CLOSERS):
        text = (text.rstrip(PAUSES) or text) + "."
    return text[:1].upper() + text[1:]
