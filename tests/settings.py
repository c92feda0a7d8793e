"""Settings of a data set, written flat in tests and sorted into their groups here."""

from typing import Any

from mg_llava.batch import TokenCount
from mg_llava.data.settings import MEMBERS


def grouped(**settings: Any) -> dict[str, Any]:
    """Arguments of ``LLaVADataset``; ``tokens_per_image`` stands for tokens of pictures with one for each box."""
    sorted_in: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "tokens_per_image":
            sorted_in["tokens"] = TokenCount(value)
        elif name in MEMBERS:
            sorted_in.setdefault(MEMBERS[name], {})[name] = value
        else:
            sorted_in[name] = value
    return sorted_in
