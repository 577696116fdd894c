"""What sources of captions share: prompts, one of which is drawn for each image, and captions as sentences."""

import re

from instruction_dataset.dialogue import refuse_tags
from instruction_dataset.sources._questions import as_sentence

DETAILED = (
    "Describe this image in detail.",
    "Write a paragraph about what this picture shows.",
    "Give a thorough description of the scene.",
    "What do you see here? Leave nothing important out.",
    "Describe the picture so that someone who cannot see it could imagine it.",
    "Go through this photo and describe everything in it.",
    "Please tell me at length what is in the image.",
    "Paint the scene in words, with its details.",
    "Explain what the image contains, from the main subject to the background.",
    "I would like a full account of this picture.",
    "Describe the objects in this image, their colors and where they are.",
    "Write several sentences that describe the photograph.",
    "Look closely at the image and report what you notice.",
    "How would you describe this scene to a friend, in every particular?",
    "Provide a rich and careful description of the image.",
    "Tell me all about this picture: people, things and surroundings.",
)
"""For descriptions of several sentences."""

SHORT = (
    "Describe this image in one sentence.",
    "Write a short caption for the picture.",
    "What does this image show, in brief?",
    "Give the photo a caption.",
    "Sum up the picture in a sentence.",
    "Briefly, what is going on here?",
    "Caption this image.",
    "Tell me in a few words what you see.",
    "What is in the picture? One sentence is enough.",
    "Please describe the photo concisely.",
    "Write one line about this image.",
    "How would you caption this photo?",
    "State in short what the picture is about.",
)
"""For captions of one sentence."""

WITH_TEXT = (
    "Describe this image in one sentence, with the text in it.",
    "Write a caption that mentions what is written in the picture.",
    "What does this image show, and what does it say?",
    "Read the text in the photo and give it a caption.",
    "Briefly describe the picture, its writing included.",
    "Caption this image. Take the visible words into account.",
    "What is here, and which words can be read on it?",
    "Sum up the picture and what is printed on it.",
    "Give a short description that makes use of the text you can read.",
    "In a sentence: what is shown, and what is written there?",
)
"""For captions of one sentence that read the text in an image."""

AERIAL = (
    "Describe this aerial image in one sentence.",
    "What does the satellite image show?",
    "Write a short caption for this view from above.",
    "Caption this remote sensing image.",
    "What can be seen from above here? Be brief.",
    "Sum up this bird's-eye view in a sentence.",
    "Tell me in a few words what this place looks like from the air.",
    "Which kind of place is this? Describe it in one sentence.",
    "Give the overhead picture a caption.",
    "Briefly, what is on the ground in this image?",
    "State in short what this aerial photograph shows.",
    "How would you caption this satellite picture?",
)
"""For captions of places seen from above."""

CHANGE = (
    "What has changed between the two dates?",
    "Describe the difference between before and after.",
    "Compare the area before and after. What is new?",
    "Which changes took place here?",
    "Tell me what is different afterwards.",
    "Did anything change in this area? If so, what?",
    "Look at the place at both times and describe what happened to it.",
    "How does the later view differ from the earlier one?",
    "Report the changes on the ground.",
    "What was built, removed or altered in the meantime?",
    "Sum up the change from before to after in a sentence.",
    "These views show one place at two times. What changed?",
    "Point out what changed over time.",
    "Say what happened between the earlier and the later view.",
    "Find the difference between the two views and describe it.",
)
"""For what changed between two views of a place, one before and one after."""

FEELING = (
    "What feeling does this painting evoke, and why?",
    "How might someone feel in front of this artwork?",
    "Which emotion does this work of art stir in you? Explain.",
    "Look at the painting. What does it make you feel, and what causes it?",
    "Name the feeling that this piece gives you and say where it comes from.",
    "Describe the mood of this artwork and what creates it.",
    "What is your emotional response to this painting?",
    "How does this work of art affect you?",
    "Tell me what this picture makes you feel.",
    "Which feeling comes up as you look at this artwork, and for what reason?",
    "What emotion would a visitor of a museum have here? Give the reason.",
    "Share the feeling that this painting leaves you with.",
)
"""For what a work of art makes its viewers feel."""

_SPACE_BEFORE_MARK = re.compile(r" (?=[.,;:!?]+(?: |$))")
_SENTENCE_START = re.compile(r"(?:^|(?<=[.!?] ))\w")


def as_caption(text: str) -> str:
    """A caption of a source as one sentence on one line; empty where it has no word.

    Raises ValueError where it holds an image tag.
    """
    line = _SPACE_BEFORE_MARK.sub("", " ".join(refuse_tags(text).split()))
    return as_sentence(line) if any(map(str.isalnum, line)) else ""


def as_paragraph(text: str) -> str:
    """A description of a source as sentences that begin with a capital, on one line; as `as_caption` otherwise."""
    return _SENTENCE_START.sub(lambda start: start.group().upper(), as_caption(text))
