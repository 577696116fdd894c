"""Statements about images that are true or false, as questions: forty ways to ask, each with its two answers."""

from random import Random
from typing import NamedTuple


class Question(NamedTuple):
    """A way to ask whether a statement holds, and what is then answered."""

    text: str
    """With `{}` where the statement goes, which begins with a capital and has no full stop."""
    yes: str
    no: str


QUESTIONS = (
    Question("{}. Is that true?", "Yes, that is true.", "No, that is not true."),
    Question("{}. Is this statement correct?", "Yes, it is correct.", "No, it is incorrect."),
    Question("{}. True or false?", "True.", "False."),
    Question("{}. Right or wrong?", "Right.", "Wrong."),
    Question("{}. Yes or no?", "Yes.", "No."),
    Question("{}. Do you agree?", "Yes, I agree.", "No, I do not agree."),
    Question("{}. Would you say so too?", "Yes, I would.", "No, I would not."),
    Question("{}. Can you confirm this?", "Yes, I can confirm it.", "No, that does not hold."),
    Question("{}. Does this match what you see?", "Yes, it matches.", "No, it does not match."),
    Question("{}. Is that what is shown?", "Yes, that is what is shown.", "No, that is not what is shown."),
    Question("{}. Is this accurate?", "Yes, this is accurate.", "No, this is not accurate."),
    Question("{}. Fact or mistake?", "It is a fact.", "It is a mistake."),
    Question("{}. Did I get that right?", "Yes, you did.", "No, you did not."),
    Question("{}. Am I mistaken?", "No, you are right.", "Yes, you are mistaken."),
    Question("{}. Isn't it so?", "Yes, it is so.", "No, it is not so."),
    Question("{}. Have I described it well?", "Yes, the description fits.", "No, the description does not fit."),
    Question("{}. Please check this claim.", "The claim is true.", "The claim is false."),
    Question("{}. Judge whether this holds.", "It holds.", "It does not hold."),
    Question("{}. Tell me if this is wrong.", "It is right.", "It is wrong."),
    Question("{}. Decide: true or false.", "This is true.", "This is false."),
    Question('Is it true that "{}"?', "Yes, it is.", "No, it is not."),
    Question('Is it correct to say "{}"?', "Yes, that is correct.", "No, that is not correct."),
    Question('Would "{}" be a fair description?', "Yes, it would.", "No, it would not."),
    Question('Does the sentence "{}" hold?', "Yes, it holds.", "No, it does not."),
    Question('Can one rightly say "{}"?', "Yes, one can.", "No, one cannot."),
    Question('Someone claims: "{}". Are they right?', "Yes, they are right.", "No, they are wrong."),
    Question('A friend told me: "{}". Was that correct?', "Yes, that was correct.", "No, that was not correct."),
    Question('Look closely. Is "{}" a true statement?', "Yes, it is true.", "No, it is false."),
    Question('Do you see evidence for "{}"?', "Yes, I do.", "No, I do not."),
    Question('Does what is shown support "{}"?', "Yes, it does.", "No, it does not."),
    Question("Is the following right? {}.", "Yes, it is right.", "No, it is not right."),
    Question("Answer with yes or no: {}.", "Yes.", "No."),
    Question("Answer with true or false: {}.", "True.", "False."),
    Question("Answer with correct or incorrect: {}.", "Correct.", "Incorrect."),
    Question("Verify this statement. {}.", "The statement is correct.", "The statement is incorrect."),
    Question("Statement: {}. Verdict?", "The statement is true.", "The statement is false."),
    Question("Consider this claim: {}. Is it valid?", "Yes, it is valid.", "No, it is not valid."),
    Question("Check the caption: {}.", "The caption is right.", "The caption is wrong."),
    Question("Here is a remark: {}. Does it fit?", "Yes, it fits.", "No, it does not fit."),
    Question("I believe the following. {}. Should I?", "Yes, it is true.", "No, it is not true."),
)


def ask(statement: str, holds: bool, rng: Random) -> tuple[str, str]:
    """A question whether a statement holds, and its answer; the statement's full stop is dropped."""
    question = rng.choice(QUESTIONS)
    statement = statement.strip().removesuffix(".").rstrip()
    return question.text.format(statement), question.yes if holds else question.no
