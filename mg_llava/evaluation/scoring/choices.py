"""How the published scripts read the option letter out of a reply to a multiple-choice question."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping

_REFERENCE_RUN = re.compile("[A-D]+")
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_FAILED = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
NO_OPTION = "Z"
"""What VLMEvalKit reads a refusal as."""

LETTERS = string.ascii_uppercase


def reference_letter(reply: str) -> str:
    """MG-LLaVA's reading: the first run of the capitals A to D, wherever it stands; ``""`` without one.

    So ``Answer: C`` is A, ``BD`` is BD (which no answer equals), ``b`` is nothing, and E can never be read.
    """
    found = _REFERENCE_RUN.search(reply)
    return found.group() if found else ""


def infer_choice(reply: str, options: Mapping[str, str]) -> str:
    """VLMEvalKit's reading by exact matching, June 2024: by letter, else by text; ``""`` where neither is unique.

    Args:
        reply: The reply.
        options: Text of each option by letter.
    """
    return _infer_letter(reply, options) or _infer_text(reply, options)


def _infer_letter(reply: str, options: Mapping[str, str]) -> str:
    """The only letter of an option among the words, or Z for a refusal; case matters.

    VLMEvalKit leaves a reply with the word ``A`` and more than three words open, in case A is an article, but only
    where its log is verbose. That is off by default, and so it is here.
    """
    if _FAILED in reply:
        return ""
    if any(refusal in reply for refusal in _REFUSALS):
        return NO_OPTION
    words = reply.translate(_PUNCTUATION).split()
    found = [letter for letter in options if letter in words]
    if len(found) == 1:
        return found[0]
    return NO_OPTION if not found and NO_OPTION in words else ""


def _infer_text(reply: str, options: Mapping[str, str]) -> str:
    """The only option whose text occurs in the reply, without regard to case."""
    lowered = reply.lower()
    found = [letter for letter, text in options.items() if text.lower() in lowered]
    return found[0] if len(found) == 1 else ""
