"""Samples to a batch: one row per sample, pictures and boxes in the order of the placeholders."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import get_worker_info

from mg_llava.batch import plan_layout
from mg_llava.features import stack
from mg_llava.pieces import Pieces, stack_pieces
from mg_llava.registry import FUNCTIONS
from mg_llava.tokens import IGNORE_INDEX, PAD_TOKEN_ID, PLACEHOLDER_IDS


@FUNCTIONS.register_module()
def collate(instances: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of B samples with N canvases and T ids in the longest row.

    Args:
        instances: Samples of ``LLaVADataset``. ``labels`` may be absent in all of them (prompts). With ``tokens``, the
            tokens of each placeholder, in all of them, the layout is planned. ``media`` says for each canvas which of
            the sample's placeholders it belongs to; without it each has its own. With ``is_video`` the pictures of a
            sample are frames of a video. ``crops`` and ``named`` say for each canvas whether it is an object image,
            and whether its boxes have placeholders of their own. ``extra`` has lists by
            name, with an entry for each picture.

    Returns:
        ``data``, a :class:`mg_llava.batch.Batch`, right-padded; without pictures there are neither ``canvas`` nor
        ``boxes``. Samples from a feature cache have ``features`` for a canvas, arrays of ``mg_llava.features.stack``
        and ``source``, the name of the cache; in a batch with both kinds ``cached``, N bools, says which are cached.
        ``data_samples`` is None.

    Raises:
        ValueError: Pictures of different sizes, other than one picture and one set of boxes per placeholder, boxes
            that are not finite, or features of different caches.
    """
    if not instances:
        raise ValueError("there are no samples to make a batch of")
    for instance in instances:
        _check(instance)
    data = _text(instances)
    images = [image for instance in instances for image in instance.get("images") or ()]
    features = _stack_features(instances)
    if images:
        shapes = sorted({tuple(image.shape) for image in images})
        if len(shapes) > 1:
            raise ValueError(f"pictures of different sizes {shapes} in the batch of {data['ids']}; use one image_size")
        data["canvas"] = _stack_pictures(images)
    if features:
        data["features"] = features
    if images and features:
        data["cached"] = [flag for instance in instances for flag in _flags(instance, "cached")]
    if images or features:
        data["boxes"] = [boxes.to(torch.float32) for instance in instances for boxes in instance.get("boxes") or ()]
    if any(instance.get("is_video") for instance in instances):
        data["frames"] = [bool(one.get("is_video")) for one in instances for _ in one.get("boxes") or ()]
    for name in ("crops", "named"):
        if any(instance.get(name) for instance in instances):
            data[name] = [flag for instance in instances for flag in _flags(instance, name)]
    if any(instance.get("media") is not None for instance in instances):
        data["media"] = _number_media(instances)
    if extra := {**_stack_extra(instances), **_join_objects(instances)}:
        data["extra"] = extra
    if all(instance.get("tokens") is not None for instance in instances):
        tokens = [count for instance in instances for count in instance["tokens"]]
        data["layout"] = plan_layout(data["input_ids"], tokens, data["attention_mask"], data.get("labels"))
    return {"data": data, "data_samples": None}


def _stack_pictures(pictures: Sequence[torch.Tensor]) -> torch.Tensor:
    """(N, 3, S, S) of N pictures (3, S, S); of a worker in memory that the training process reads without a copy."""
    first, out = pictures[0], None
    if get_worker_info() is not None:
        storage = first._typed_storage()._new_shared(len(pictures) * first.numel(), device=first.device)
        out = first.new(storage).resize_(len(pictures), *first.shape)
    return torch.stack(list(pictures), out=out)


def _flags(instance: dict[str, Any], name: str) -> list[bool]:
    """Of each canvas of a sample whether it is so; where it does not say, all are cached that have features alone."""
    given, canvases = instance.get(name), len(instance.get("boxes") or ())
    return [name == "cached" and bool(instance.get("features"))] * canvases if given is None else list(given)


def _text(instances: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Padded rows of text, and names of the samples."""
    rows = [torch.as_tensor(instance["input_ids"], dtype=torch.int64) for instance in instances]
    lengths = torch.tensor([len(row) for row in rows])
    input_ids = pad_sequence(rows, batch_first=True, padding_value=PAD_TOKEN_ID)
    data = {
        "input_ids": input_ids,
        "attention_mask": torch.arange(input_ids.shape[1])[None] < lengths[:, None],
        "ids": [str(instance.get("id", number)) for number, instance in enumerate(instances)],
    }
    if all(instance.get("labels") is not None for instance in instances):
        labels = [torch.as_tensor(instance["labels"], dtype=torch.int64) for instance in instances]
        data["labels"] = pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX)
    return data


def _check(instance: dict[str, Any]) -> None:
    owner = f"sample {instance.get('id')!r}"
    placeholders = sum(1 for token in instance["input_ids"] if int(token) in PLACEHOLDER_IDS)
    canvases = len(instance.get("images") or ()) + len(instance.get("features") or ())
    sets, media, tokens = instance.get("boxes") or (), instance.get("media"), instance.get("tokens")
    own = canvases + sum(len(boxes) for boxes, flag in zip(sets, _flags(instance, "named"), strict=True) if flag)
    if canvases != len(sets) or (placeholders != own if media is None else canvases != len(media)):
        raise ValueError(
            f"{owner} has {placeholders} placeholders, {canvases} pictures and {len(sets)} sets of boxes"
            f"{'' if media is None else f', and {len(media)} pictures in media'}; it needs one of each per picture (a "
            "set may be empty), or media for placeholders of several pictures"
        )
    if media is not None and sorted(set(media)) != list(range(placeholders)):
        raise ValueError(f"{owner}: media is {list(media)}; it must name each of the {placeholders} placeholders")
    if media is not None and list(media) != sorted(media):
        raise ValueError(f"{owner}: media is {list(media)}; pictures must be in the order of their placeholders")
    if tokens is not None and len(tokens) != placeholders:
        raise ValueError(f"{owner} has {placeholders} placeholders and counts the tokens of {len(tokens)}")
    labels = instance.get("labels")
    if labels is not None and len(labels) != len(instance["input_ids"]):
        raise ValueError(f"{owner} has {len(instance['input_ids'])} ids and {len(labels)} labels")
    for picture, boxes in enumerate(sets):
        if not boxes.isfinite().all():
            bad = int((~boxes.isfinite()).any(dim=1).nonzero()[0])
            raise ValueError(f"{owner}: box {boxes[bad].tolist()} of picture {picture} is not finite")


def _number_media(instances: Sequence[dict[str, Any]]) -> list[int]:
    """For each of the N canvases the placeholder of the batch that it belongs to."""
    media: list[int] = []
    for instance in instances:
        first = media[-1] + 1 if media else 0
        own = instance.get("media")
        media += [first + place for place in (range(len(instance.get("boxes") or ())) if own is None else own)]
    return media


def _stack_extra(instances: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What one system alone reads, for each of the N canvases; rows of pieces are stacked."""
    found: dict[str, list[Any]] = {}
    for instance in instances:
        for name, rows in (instance.get("extra") or {}).items():
            found.setdefault(name, []).extend(rows)
    canvases = sum(len(instance.get("boxes") or ()) for instance in instances)
    for name, rows in found.items():
        if len(rows) != canvases:
            raise ValueError(f"{canvases} pictures in the batch but {len(rows)} entries of extra[{name!r}]")
    found = {name: rows for name, rows in found.items() if rows}
    stacked = {name: stack_pieces(rows) for name, rows in found.items() if isinstance(rows[0], Pieces)}
    # copies: a worker moves its tensors into shared memory, and an array over one would be left with freed memory
    planned = {"planned": [np.array(part) for part in stacked["pieces"]]} if "pieces" in stacked else {}
    return {**found, **stacked, **planned}


def _join_objects(instances: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Annotated objects of each of the N canvases; None for those of samples that have none."""
    if not any("objects" in instance for instance in instances):
        return {}
    known = [instance.get("objects") or [None] * len(instance.get("boxes") or ()) for instance in instances]
    return {"objects": [one for objects in known for one in objects]}


def _stack_features(instances: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Features of all pictures and the name of their cache; empty where there are none."""
    pictures = [arrays for instance in instances for arrays in instance.get("features") or ()]
    sources = {instance["feature_cache"] for instance in instances if instance.get("features")}
    if len(sources) > 1:
        raise ValueError(
            f"features of different caches {sorted(sources)} in one batch; use one folder for all sources"
        )
    return {**stack(pictures), "source": sources.pop()} if pictures else {}
