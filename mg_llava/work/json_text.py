"""JSON from anywhere: whatever is wrong with a text is a ``ValueError`` that says what."""

import codecs
import json
from pathlib import Path
from typing import Any


def parse_json(text: bytes | str) -> Any:
    """The value that a text holds; bytes are UTF-8.

    Raises:
        ValueError: It holds none, is nested too deeply, or has a number of thousands of digits.
    """
    try:
        return json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        raise ValueError(explain_json(error)) from error


def load_object(path: Path) -> dict[str, Any]:
    """The object that a UTF-8 file holds, with a byte order mark or without.

    Raises:
        ValueError: It holds none; the message says what is wrong, and not where.
    """
    content = parse_json(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}, an object is needed")
    return content


def explain_json(error: Exception) -> str:
    """An error of Python's reader in words for users."""
    if isinstance(error, RecursionError):
        return "lists or objects are nested too deeply"
    return "a number has too many digits" if "digits" in str(error) else str(error)
