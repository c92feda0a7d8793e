"""Rows of a processor's batch: what each has of pictures, boxes and regions, and rows of ids to tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mg_llava.data.inputs import PictureLike, is_nothing, list_boxes, list_pictures
from mg_llava.data.records.schema import Turn
from mg_llava.hf.prompts import to_turns
from mg_llava.tokens import IMAGE_PLACEHOLDER


def pictures_of(conversation: Sequence[Any]) -> list[Any]:
    """Pictures that lie in the messages of a conversation; of several conversations a list for each."""
    if conversation and not isinstance(conversation[0], Mapping):
        found = [pictures_of(one) for one in conversation]
        return found if any(found) else []
    items = [item for message in conversation for item in message["content"] if isinstance(item, Mapping)]
    return [item[key] for item in items for key in ("image", "path", "url") if item.get(key) is not None]


def list_rows(text: Any, conversation: Any, with_labels: bool = False) -> tuple[list[Any], bool]:
    """Rows, and whether they were given as a batch."""
    if (text is None) == (conversation is None):
        raise ValueError("give either text or conversation")
    if text is not None:
        if with_labels:
            raise ValueError("labels need conversation: only there it is known which text is an answer")
        if isinstance(text, str):
            return [text], False
        if not isinstance(text, Sequence) or not all(isinstance(row, str) for row in text):
            raise ValueError(f"text is a {type(text).__name__}; it is a text or a list of texts")
        return list(text), True
    if not isinstance(conversation, Sequence) or isinstance(conversation, str) or not conversation:
        raise ValueError("conversation is a list of messages, or a list of such lists")
    is_batch = isinstance(conversation[0], Sequence) and not isinstance(conversation[0], str)
    return (list(conversation), True) if is_batch else ([conversation], False)


def share_pictures(images: Any, rows: Sequence[Any], is_batch: bool) -> list[list[PictureLike]]:
    """The pictures of each row."""
    if images is None:
        return [[] for _ in rows]
    if not is_batch:
        return [list_pictures(images, "images")]
    if isinstance(images, PictureLike) or not isinstance(images, Sequence):
        images = [images]
    is_flat = all(isinstance(item, PictureLike) for item in images)
    wanted = [_count_placeholders(row) for row in rows]
    if is_flat and sum(wanted) == len(images):
        rest = iter(images)
        return [[next(rest) for _ in range(count)] for count in wanted]
    if len(images) != len(rows):
        raise ValueError(
            f"{len(images)} pictures for {len(rows)} rows with {sum(wanted)} {IMAGE_PLACEHOLDER}; give for each row a "
            "picture, a list of pictures or None, or as many pictures as there are placeholders"
        )
    return [list_pictures(item, f"row {number}") for number, item in enumerate(images)]


def share_boxes(boxes: Any, pictures: Sequence[Sequence[Any]], is_batch: bool) -> list[list[Any]]:
    """The boxes of each picture of each row, None where there are none."""
    if boxes is None:
        return [[None] * len(own) for own in pictures]
    if not is_batch:
        boxes = [boxes]
    if len(boxes) != len(pictures):
        raise ValueError(f"{len(pictures)} rows but {len(boxes)} sets of boxes; give one, or None, for each row")
    return [
        list_boxes(None if is_nothing(found) and not own else found, len(own), f"row {number}")
        for number, (found, own) in enumerate(zip(boxes, pictures, strict=True))
    ]


def share_objects(objects: Any, rows: int, is_batch: bool) -> list[Any]:
    """The regions of each row."""
    shared = [None] * rows if is_nothing(objects) else list(objects) if is_batch else [objects]
    if len(shared) != rows:
        raise ValueError(f"{rows} rows but {len(shared)} lists of objects; give one, or None, for each row")
    return shared


def _count_placeholders(row: Any) -> int:
    if isinstance(row, str):
        return row.count(IMAGE_PLACEHOLDER)
    turns: list[Turn] = to_turns(row)[0]
    return sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns if turn.role == "human")


def pad_rows(
    rows: Sequence[Sequence[int]], padding: bool | str, side: str, max_length: int | None, value: int
) -> dict[str, Tensor]:
    """B rows to ``input_ids`` and ``attention_mask``, (B, T) each."""
    if side not in ("left", "right"):
        raise ValueError(f"padding_side is {side!r}; allowed: 'left', 'right'")
    if padding not in (True, False, "longest", "max_length", "do_not_pad"):
        raise ValueError(f"padding is {padding!r}; allowed: True, 'longest', 'max_length', False")
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    if padding in (False, "do_not_pad") and len(set(lengths)) > 1:
        raise ValueError(f"rows of {sorted(set(lengths))} ids make no tensor; set padding=True")
    if padding == "max_length":
        if max_length is None or max_length < longest:
            raise ValueError(f"padding='max_length' needs a max_length of {longest} or more, found {max_length}")
        longest = max_length
    full = torch.zeros(longest, dtype=torch.int64)  # a row that has the length of all
    ids = pad_sequence([full, *(torch.tensor(row, dtype=torch.int64) for row in rows)], True, value, side)[1:]
    mask = pad_sequence([full, *(torch.ones(count, dtype=torch.int64) for count in lengths)], True, 0, side)[1:]
    return {"input_ids": ids, "attention_mask": mask}
