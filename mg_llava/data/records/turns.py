"""Turns of a conversation: which ones are encoded, and the placeholders in them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mg_llava.tokens import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER

Role = Literal["human", "gpt"]
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""How names of picture files end."""
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts")
"""How names of video files end."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; in an answer that a model ``is_said`` to have given placeholders are words."""

    role: Role
    text: str
    is_said: bool = False


def answered_turns(turns: Sequence[Turn]) -> list[Turn]:
    """The turns that are encoded: from the first human turn to the last answer."""
    start = next((i for i, turn in enumerate(turns) if turn.role == "human"), len(turns))
    end = next((i for i in range(len(turns), 0, -1) if turns[i - 1].role == "gpt"), 0)
    return list(turns[start:end])


def expand_video(turns: Sequence[Turn], frames: int) -> list[Turn]:
    """Turns in which the placeholder of a video is those of its frames, before the text and a line break.

    Args:
        turns: Conversation about one video.
        frames: Number of frames.
    """
    return [
        replace(turn, text=f"{IMAGE_PLACEHOLDER * frames}\n{turn.text.replace(VIDEO_PLACEHOLDER, '').strip()}".strip())
        if turn.role == "human" and VIDEO_PLACEHOLDER in turn.text
        else turn
        for turn in turns
    ]
