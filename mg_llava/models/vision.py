"""Running the frozen encoders, and saying exactly which ones they are, for those that keep what they give.

Shapes: N pictures, S side of the canvas in pixels, P low-resolution tokens, n boxes of a picture.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mg_llava.features import Features
from mg_llava.models.encoders.views import low_resolution_view, normalize
from mg_llava.registry import MODELS

_VERSION = 1
_DIGITS = 16


def run_encoders(low_encoder: Any, high_encoder: Any | None, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Both views of pictures through both encoders.

    Args:
        low_encoder: The low-resolution encoder.
        high_encoder: The high-resolution encoder; None where nothing reads it.
        images: ``(N, 3, S, S)`` uint8, or floating and normalized.

    Returns:
        ``(N, P, C_l)``, and the stage maps, none without a high-resolution encoder.
    """
    canvas = normalize(images, low_encoder.image_mean, low_encoder.image_std)
    low = low_encoder(low_resolution_view(canvas, low_encoder.image_size))
    if high_encoder is None:
        return low, []
    if _normalization(low_encoder) != _normalization(high_encoder):
        canvas = normalize(images, high_encoder.image_mean, high_encoder.image_std)
    return low, high_encoder(canvas)


class FeatureExtractor(nn.Module):
    """The parts of a model that a feature cache stands for: both encoders and the pooling of boxes.

    Args:
        low_encoder: The low-resolution encoder.
        high_encoder: The high-resolution encoder; None where nothing reads it.
        fusion: Whether the model has a fusion, which reads the last stage.
        box_projector: Pools boxes; None without an object branch.
    """

    def __init__(self, low_encoder: Any, high_encoder: Any | None, fusion: bool, box_projector: Any | None) -> None:
        super().__init__()
        self.low_encoder, self.high_encoder, self.fusion = low_encoder, high_encoder, fusion
        self.box_projector = box_projector

    @classmethod
    def build(cls, settings: Mapping[str, Any]) -> "FeatureExtractor":
        """From the config of a whole model; of the LLM and the trained parts nothing is read."""
        fusion, boxes = settings.get("fusion"), settings.get("box_projector")
        low = MODELS.build(dict(settings["low_res_encoder"]))
        if fusion is None and boxes is None:
            return cls(low, None, False, None)
        high = MODELS.build(dict(settings["high_res_encoder"]))
        if boxes is not None:
            # only its pooling is wanted: the width of its tokens does not matter
            boxes = MODELS.build({**boxes, "stage_channels": list(high.stage_channels), "out_channels": 1})
        return cls(low, high, fusion is not None, boxes)

    @property
    def sizes(self) -> dict[str, Any]:
        """Arguments of ``mg_llava.features.blocks_of``, but for the dtype."""
        low, high, boxes = self.low_encoder, self.high_encoder, self.box_projector
        return {
            "low": [low.grid**2, low.hidden_size],
            "high": None if high is None or not self.fusion else [high.grid**2, high.stage_channels[-1]],
            "pooled": None if boxes is None else boxes.in_channels,
        }

    @property
    def dtype_name(self) -> str:
        """What the encoders compute in, such as ``bfloat16``; the wider one where they differ."""
        found = [encoder.dtype for encoder in (self.low_encoder, self.high_encoder) if encoder is not None]
        return str(max(found, key=lambda dtype: dtype.itemsize)).removeprefix("torch.")

    def describe(self) -> dict[str, Any]:
        """See :func:`describe_encoders`."""
        return describe_encoders(self.low_encoder, self.high_encoder, self.fusion or None, self.box_projector)

    @torch.no_grad()
    def forward(self, images: Tensor, boxes: Sequence[Tensor]) -> Features:
        """What the trained parts of the model would read of N pictures; arguments as for ``MGLLaVA.encode``."""
        low, stages = run_encoders(self.low_encoder, self.high_encoder, images)
        pooled = None if self.box_projector is None else self.box_projector.pool(stages, boxes, images.shape[-1])
        return Features(low, stages[-1] if self.fusion else None, pooled)


def describe_encoders(low: Any, high: Any | None, fusion: Any | None, box_projector: Any | None) -> dict[str, Any]:
    """All that the features of a picture depend on, but for the picture and its boxes, as plain values.

    Parameters that are split over processes are gathered, so that all processes must call this together.
    """
    about: dict[str, Any] = {"version": _VERSION, "fusion": fusion is not None, "boxes": box_projector is not None}
    for name, encoder in (("low_res_encoder", low), ("high_res_encoder", high)):
        if encoder is not None:
            about[f"{name}.image_size"] = encoder.image_size
            about[f"{name}.normalization"] = repr(_normalization(encoder))
            about[f"{name}.dtype"] = str(encoder.dtype).removeprefix("torch.")
            about[f"{name}.weights"] = _digest(encoder)
    if box_projector is not None:
        about["box_projector"] = type(box_projector).__name__
        about["box_projector.bins"] = box_projector.bins
        about["box_projector.stages"] = list(box_projector.stages)
    return about


def compare_encoders(stated: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """What a model needs that features do not have, in words; features may hold more than it reads.

    Args:
        stated: How the encoders of the features were described.
        own: How those of the model are.
    """
    differences = []
    for part, reader in (("fusion", "map for the fusion"), ("boxes", "boxes")):
        if own[part] and not stated.get(part):
            differences.append(f"the cache holds no {reader}")
    known = {key: value for key, value in own.items() if key not in ("fusion", "boxes")}
    for key, value in known.items():
        if key in stated and stated[key] != value:
            differences.append(f"{key} was {stated[key]}, now {value}")
    return differences


def _normalization(encoder: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(encoder.image_mean), tuple(encoder.image_std)


def _digest(module: nn.Module) -> str:
    """Short hash of all weights, by name."""
    digest = hashlib.blake2b(digest_size=_DIGITS)
    for name, parameter in module.named_parameters():
        name = name.replace("_orig_mod.", "")  # torch.compile wraps modules
        digest.update(f"{name} {tuple(getattr(parameter, 'ds_shape', parameter.shape))}".encode())
        with _whole(parameter):
            digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _whole(parameter: nn.Parameter) -> Iterator[None]:
    """Inside, a parameter that is split over processes is whole."""
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameter):
        yield
