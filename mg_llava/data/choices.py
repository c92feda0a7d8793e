"""Settings that are one of a few words, which their ``Literal`` types name, or numbers of things."""

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints


def wrong_choices(settings: Any) -> list[str]:
    """A sentence for each field of a dataclass with a value that its ``Literal`` type does not have."""
    kinds = get_type_hints(type(settings))
    names = [field.name for field in fields(settings) if get_origin(kinds[field.name]) is Literal]
    return [wrong for name in names for wrong in wrong_choice(name, getattr(settings, name), kinds[name])]


def wrong_choice(name: str, value: Any, kind: Any) -> list[str]:
    """The sentence for one value; empty where it is allowed."""
    allowed = get_args(kind)
    return [] if value in allowed else [f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}"]


def wrong_count(name: str, value: Any, least: int = 1, none: str = "") -> list[str]:
    """The sentence for a number of things; empty where it is allowed.

    Args:
        name: Name of the setting.
        value: What was given.
        least: Smallest number that is allowed.
        none: Meaning of None; empty where None is not allowed.
    """
    if (value is None and none) or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        return []
    return [
        f"{name} is {value!r}; it must be at least {least}, a whole number" + (f", or None for {none}" if none else "")
    ]
