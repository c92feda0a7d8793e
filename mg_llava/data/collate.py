"""Samples to a batch: one row per sample, pictures and boxes in the order of the placeholders."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from mg_llava.features import stack
from mg_llava.registry import FUNCTIONS
from mg_llava.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX, PAD_TOKEN_ID


@FUNCTIONS.register_module()
def collate(instances: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of B samples with N pictures and T ids in the longest row.

    Args:
        instances: Samples of ``LLaVADataset``; ``labels`` may be absent in all of them (prompts).

    Returns:
        ``data``: ``input_ids`` (B, T) int64, right-padded; ``attention_mask`` (B, T) bool, true on the first
        ``len(row)`` columns of each row; ``labels`` (B, T) int64; ``ids``, B strings; and, where N > 0, ``images``
        (N, 3, S, S) uint8 and ``boxes``, N tensors (n_i, 4) float32 in canvas pixels. Samples from a feature cache
        have ``features`` for images, arrays of ``mg_llava.features.stack`` and ``source``, the name of the cache; in
        a batch with both kinds ``cached`` (N,) bool says which pictures are cached. ``data_samples`` is None.

    Raises:
        ValueError: Pictures of different sizes, other than one picture and one set of boxes per placeholder, or
            features of different caches.
    """
    if not instances:
        raise ValueError("there are no samples to make a batch of")
    for instance in instances:
        _check(instance)
    rows = [torch.as_tensor(instance["input_ids"], dtype=torch.int64) for instance in instances]
    lengths = torch.tensor([len(row) for row in rows])
    input_ids = pad_sequence(rows, batch_first=True, padding_value=PAD_TOKEN_ID)
    ids = [str(instance.get("id", number)) for number, instance in enumerate(instances)]
    data: dict[str, Any] = {
        "input_ids": input_ids,
        "attention_mask": torch.arange(input_ids.shape[1])[None] < lengths[:, None],
        "ids": ids,
    }
    if all(instance.get("labels") is not None for instance in instances):
        labels = [torch.as_tensor(instance["labels"], dtype=torch.int64) for instance in instances]
        data["labels"] = pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX)
    images = [image for instance in instances for image in instance.get("images") or ()]
    features = _stack_features(instances)
    if images:
        data["images"] = _stack(images, ids)
    if features:
        data["features"] = features
    if images and features:
        counts = [(len(instance.get("images") or ()), len(instance.get("features") or ())) for instance in instances]
        data["cached"] = torch.tensor(
            [bool(cached) for pair in counts for cached in [False] * pair[0] + [True] * pair[1]]
        )
    if images or features:
        data["boxes"] = [boxes.to(torch.float32) for instance in instances for boxes in instance.get("boxes") or ()]
    return {"data": data, "data_samples": None}


def _check(instance: dict[str, Any]) -> None:
    placeholders = sum(1 for token in instance["input_ids"] if int(token) == IMAGE_TOKEN_INDEX)
    images = len(instance.get("images") or ()) + len(instance.get("features") or ())
    boxes = len(instance.get("boxes") or ())
    if not placeholders == images == boxes:
        raise ValueError(
            f"sample {instance.get('id')!r} has {placeholders} placeholders, {images} pictures and {boxes} sets of "
            "boxes; it needs one of each per picture (a set may be empty)"
        )
    labels = instance.get("labels")
    if labels is not None and len(labels) != len(instance["input_ids"]):
        raise ValueError(
            f"sample {instance.get('id')!r} has {len(instance['input_ids'])} ids and {len(labels)} labels"
        )


def _stack(images: Sequence[torch.Tensor], ids: Sequence[str]) -> torch.Tensor:
    """N pictures (3, S, S) -> (N, 3, S, S)."""
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(
            f"pictures of different sizes {sorted(shapes)} in the batch of {list(ids)}; use one image_size"
        )
    return torch.stack(list(images))


def _stack_features(instances: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Features of all pictures and the name of their cache; empty where there are none."""
    pictures = [arrays for instance in instances for arrays in instance.get("features") or ()]
    sources = {instance["feature_cache"] for instance in instances if instance.get("features")}
    if len(sources) > 1:
        raise ValueError(
            f"features of different caches {sorted(sources)} in one batch; use one folder for all sources"
        )
    return {**stack(pictures), "source": sources.pop()} if pictures else {}
