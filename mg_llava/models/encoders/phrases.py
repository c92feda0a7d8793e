"""Names of classes as the text of an open-vocabulary detector, and its scores of tokens as scores of classes.

Shapes: N canvases, K queries, L tokens of the text.
"""

from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mg_llava.batch import send, send_together

_SEPARATORS = str.maketrans({".": " ", "?": " "})
"""Grounding DINO takes these for ends of a phrase."""

_SPECIAL = (101, 102, 1012)
"""Begin, end and ``.`` of BERT's vocabulary, by which Grounding DINO finds its phrases."""

_ENDS = (*_SPECIAL, 1029)
"""These and ``?``, which end a phrase."""

_MASKS = "planned_masks"
"""Attribute of ids."""


class Phrases(NamedTuple):
    """A text that names classes: ``[CLS] traffic light . dog . [SEP]``."""

    ids: list[int]
    """Of its L tokens."""
    owners: list[int]
    """For each token the class that it belongs to, -1 for none."""


def write_phrases(path: str, names: Sequence[str], limit: int) -> Phrases:
    """The text that asks for some classes.

    Args:
        path: Folder of the detector with its tokenizer; where it is only named, sizes alone are wanted, and each word
            counts as a token.
        names: The classes; each becomes a phrase of its own, so that none merges with its neighbor.
        limit: Most tokens.

    Raises:
        ValueError: There are no names, one is empty or comes twice, or they take too many tokens.
    """
    plain = [" ".join(name.lower().translate(_SEPARATORS).split()) for name in names]
    if not all(plain) or len(set(plain)) < len(plain) or not plain:
        raise ValueError(f"classes are {list(names)}; give the names of classes, each once")
    encode = _encoder(path)
    ids, owners = [_SPECIAL[0]], [-1]
    for number, name in enumerate(plain):
        tokens = encode(name)
        ids += [*tokens, _SPECIAL[2]]
        owners += [number] * len(tokens) + [-1]
    ids, owners = [*ids, _SPECIAL[1]], [*owners, -1]
    if len(ids) > limit:
        raise ValueError(f"{len(names)} classes take {len(ids)} tokens, {path} reads {limit}; give fewer")
    return Phrases(ids, owners)


def read_phrases(phrases: Phrases, pictures: int, device: torch.device) -> dict[str, Tensor]:
    """Arguments of a detector for N canvases that are asked for the same classes."""
    mask, positions = plan_masks(phrases)
    ids, places = (
        own.expand(pictures, -1) for own in send_together([torch.tensor([phrases.ids]), positions[None]], device)
    )
    setattr(ids, _MASKS, (send(mask, device).expand(pictures, -1, -1), places))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def plan_masks(phrases: Phrases) -> tuple[Tensor, Tensor]:
    """Which tokens see each other ``(L, L)`` bool, and positions ``(L,)`` int64 within phrases; on the host."""
    length, last = len(phrases.ids), 0
    mask, positions = torch.eye(length, dtype=torch.bool), torch.zeros(length, dtype=torch.int64)
    for place in range(1, length - 1):
        if phrases.ids[place] in _ENDS:
            own = slice(last + 1, place + 1)
            mask[own, own] = True
            positions[own] = torch.arange(place - last)
            last = place
    return mask, positions


def take_planned_masks() -> None:
    """Let Grounding DINO of transformers take the masks of :func:`read_phrases`.

    Of other texts it goes on to look for the ends of phrases itself, token by token, and waits for the device at each.
    """
    from transformers.models.grounding_dino import modeling_grounding_dino as stock

    find = stock.generate_masks_with_special_tokens_and_transfer_map
    if hasattr(find, _MASKS):
        return

    @wraps(find)
    def take(input_ids: Tensor, *ends: Any, **named: Any) -> tuple[Tensor, Tensor]:  # transformers 5 gives the ends
        return getattr(input_ids, _MASKS) if hasattr(input_ids, _MASKS) else find(input_ids, *ends, **named)

    setattr(take, _MASKS, True)
    stock.generate_masks_with_special_tokens_and_transfer_map = take


def score_classes(phrases: Phrases, logits: Tensor) -> Tensor:
    """Logits of tokens ``(N, K, at least L)`` to those of classes ``(N, K, classes)``: of each its best token."""
    places = [place for place, owner in enumerate(phrases.owners) if owner >= 0]
    owners = [phrases.owners[place] for place in places]
    chosen = send(torch.tensor([places, owners]), logits.device)
    values = logits.index_select(2, chosen[0])
    empty = values.new_full((*values.shape[:2], max(owners) + 1), -torch.inf)
    return empty.scatter_reduce(2, chosen[1].expand_as(values), values, "amax", include_self=False)


def _encoder(path: str) -> Any:
    if not Path(path).is_dir():
        return lambda text: [0] * len(text.split())
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    own = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.convert_tokens_to_ids(".")]
    if own != list(_SPECIAL):
        raise ValueError(
            f"the tokenizer of {path} has {own} for [CLS], [SEP] and '.', Grounding DINO needs {list(_SPECIAL)}; use "
            "the one that was published with the detector"
        )
    return lambda text: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
