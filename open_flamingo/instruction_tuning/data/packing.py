"""Multi-turn augmentation: further records appended as turns fill a sample up (Polite Flamingo, arXiv:2307.01003)."""

from collections.abc import Iterable

from open_flamingo.instruction_tuning.data.conversation import Conversation, Turn


def fits(turn: Turn, max_length: int, max_img: int) -> bool:
    """True for a record that can be trained on: its prompt leaves room for an answer, its images are not too many."""
    return len(turn.prompt) < max_length and len(turn.images) <= max_img


def pack(first: Turn, further: Iterable[Turn], *, max_length: int, max_img: int, media_token_id: int) -> Conversation:
    """One conversation of at most `max_length` tokens and `max_img` images; the last turn may be cut.

    `further` is drawn from until the sample is full or the next turn's images would be too many.
    """
    conversation = Conversation()
    conversation.append(first)
    if len(conversation.ids) < max_length:
        for turn in further:
            if len(conversation.images) + len(turn.images) > max_img:
                break
            conversation.append(turn)
            if len(conversation.ids) >= max_length:
                break
    conversation.cut(max_length, media_token_id)
    return conversation
