"""Canvases that frozen encoders have seen before: making what a feature cache keeps, and taking it in their place.

Shapes: N canvases, S side of a canvas in pixels, P tokens, n_i boxes of canvas i.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mg_llava.features import Features, unpack
from mg_llava.models.encoders.views import normalize
from mg_llava.models.interfaces import Detected, Fusion, Looked, ObjectReader, Seeing, Seen, Spec
from mg_llava.models.parts import build_part
from mg_llava.pieces import Pieces

_VERSION = 1
_DIGITS = 16


def is_split(system: nn.Module) -> bool:
    """Whether parameters are split over processes (ZeRO-3), so that all must run the same modules to gather them."""
    return hasattr(next(system.parameters()), "ds_id")


def run_encoders(system: Any, keys: Sequence[str], canvas: Tensor) -> dict[str, Seen]:
    """Outputs of encoders by the key of their part; canvases are normalized once for those that agree in it.

    Args:
        system: Has the encoders.
        keys: Of their parts.
        canvas: ``(N, 3, S, S)`` uint8, or floating and normalized.
    """
    normalized: dict[Any, Tensor] = {}
    seen = {}
    for key in keys:
        encoder = getattr(system, key)
        how = (tuple(encoder.spec.mean), tuple(encoder.spec.std))
        if how not in normalized:
            normalized[how] = normalize(canvas, *how)
        seen[key] = encoder(normalized[how])
    return seen


def blank_seen(spec: Spec, like: Tensor) -> Seen:
    """Zeros in the shapes that an encoder gives of one canvas, in the dtype of another tensor and on its device."""
    zeros = like.new_zeros
    sides = [spec.image_size // stride for stride in spec.stage_strides]
    maps = [zeros(1, channels, side, side) for channels, side in zip(spec.stage_channels, sides, strict=True)]
    detected = _apart(zeros(1, spec.objects, sum(_widths(spec))), spec) if spec.objects else None
    return Seen(zeros(1, spec.tokens, spec.channels) if spec.tokens else None, maps, detected)


def refuse_features(system: Any) -> list[str]:
    """Why no feature cache can stand for the encoders of a system, in words; empty where one can."""
    encoders = [(part.config, module) for part, module in system.named_parts() if part.role == "encoder"]
    tokens = [name for name, module in encoders if module.spec.tokens]
    trained = [name for name, module in encoders if module.is_trained]
    reasons = []
    if len(tokens) > 1:
        reasons.append(f"a feature cache keeps the tokens of one encoder, and {' and '.join(tokens)} give some")
    if trained:
        reasons.append(f"a feature cache stands for frozen encoders, and {', '.join(trained)} is trained")
    return reasons


class CachedFeatures:
    """A system's door for features of a cache, which it takes in place of canvases once they were compared.

    Args:
        system: A :class:`mg_llava.models.system.System` whose ``look`` gives tokens of the low-resolution encoder, the
            maps of the high-resolution one that its fusion reads, and pooled boxes.
    """

    def __init__(self, system: Any) -> None:
        self._system = system
        self._accepted: set[str] = set()
        self.replaces_encoders = False
        """Whether all canvases of the training come from caches, so that the encoders never run."""

    def accept(self, stated: Mapping[str, Any], source: str, alone: bool = True) -> None:
        """Take features of a cache, after a look at whether they are of these encoders.

        Args:
            stated: How the encoders that filled it were described; see :func:`describe_encoders`.
            source: Name of the cache in batches.
            alone: Whether all pictures of the training come from caches.

        Raises:
            ValueError: They are of other encoders or lack what this system reads, with all that differs in one
                message; no cache can stand for the encoders of this system; or parameters are split over processes and
                the encoders run in some of them alone.
        """
        if reasons := refuse_features(self._system):
            raise ValueError(f"{'; '.join(reasons)}; set feature_cache=None")
        reader = type(self._system.part_of(Fusion)).__name__
        differences = compare_encoders(stated, describe_encoders(self._system), reader)
        if differences:
            raise ValueError(
                f"feature cache {source} was filled for another model: {'; '.join(differences)}; fill another "
                "folder with tools/fill_feature_cache.py"
            )
        reads_crops = bool(self._system.token_count.per_crop)  # which no cache has
        if (not alone or reads_crops) and is_split(self._system):
            raise ValueError(
                "ZeRO-3 needs the same modules to run in every process: use a feature cache for all sources with "
                "pictures and missing_features='error', or ZeRO-2"
            )
        self._accepted.add(source)
        self.replaces_encoders = alone

    def see(self, batch: Mapping[str, Any]) -> Seeing:
        """The segments of each canvas of a batch in which some or all come from a cache.

        Raises:
            ValueError: These features were not compared with the encoders.
        """
        canvas, features, boxes = batch.get("canvas"), batch["features"], batch.get("boxes", ())
        question = (batch.get("extra") or {}).get("pieces")
        if canvas is None:
            return self._connect(features, boxes, question)
        cached = batch["cached"]
        crops, asked = batch.get("crops"), [None, None]
        rows = [[row for row, old in enumerate(cached) if old == wanted] for wanted in (False, True)]
        flags = None if crops is None else [crops[row] for row in rows[0]]
        if question is not None:
            asked = [question.map(lambda part, own=own: part[own]) for own in rows]
        new = iter(self._system.encode(canvas, [boxes[row] for row in rows[0]], flags, asked[0]))
        known = iter(self._connect(features, [boxes[row] for row in rows[1]], asked[1]))
        return [next(known if old else new) for old in cached]

    def _connect(self, features: Mapping[str, Any], boxes: Sequence[Tensor], question: Pieces | None) -> Seeing:
        if features["source"] not in self._accepted:
            raise ValueError(
                "features of a cache were not compared with the model's encoders; add "
                "dict(type='mg_llava.FeatureCacheHook') to custom_hooks, or call the model's cached.accept"
            )
        low, high, detector = _encoder_keys(self._system)
        found = unpack(features)
        seen = {low: Seen(found.low)}
        if found.high is not None and high is not None:
            seen[high] = Seen(maps=found.maps)
        if found.objects is not None and detector is not None:
            seen[detector] = Seen(detected=_apart(found.objects, getattr(self._system, detector).spec))
        return self._system.ask(Looked(seen, found.pooled, boxes), [len(item) for item in boxes], question)


class FeatureExtractor(nn.Module):
    """The parts of a system that a feature cache stands for: its encoders and the pooling of boxes.

    Args:
        system: A system, with or without its LLM.

    Raises:
        ValueError: No cache can stand for its encoders.
    """

    def __init__(self, system: Any) -> None:
        super().__init__()
        if reasons := refuse_features(system):
            raise ValueError("; ".join(reasons))
        self.system = system
        self._low, high, self._detector = _encoder_keys(system)
        self._map_of = high if system.part_of(Fusion) is not None else None
        """Key of the encoder whose maps a fusion reads."""

    @classmethod
    def build(cls, settings: Mapping[str, Any]) -> "FeatureExtractor":
        """From the config of a whole system; the LLM is not read."""
        own: dict[str, Any] = {"llm": None, "losses": [], "packing": None, "trains": None, "pretrained_pth": None}
        return cls(build_part({**settings, **own}))

    @property
    def sizes(self) -> dict[str, Any]:
        """Arguments of ``mg_llava.features.blocks_of``, but for the dtype."""
        boxes, low = self.system.part_of(ObjectReader), getattr(self.system, self._low).spec
        high = None if self._map_of is None else getattr(self.system, self._map_of).spec
        sizes = {
            "low": [low.tokens, low.channels],
            "high": None if high is None else [high.grid**2, high.stage_channels[-1]],
            "pooled": None if boxes is None else boxes.in_channels,
        }
        if high is not None and _reads_all(self.system):
            stages = zip(high.stage_strides[:-1], high.stage_channels[:-1], strict=True)
            sizes["finer"] = [[(high.image_size // stride) ** 2, channels] for stride, channels in stages]
        if self._detector is not None:
            spec = getattr(self.system, self._detector).spec
            sizes["objects"] = [spec.objects, sum(_widths(spec))]
        return sizes

    @property
    def dtype_name(self) -> str:
        """Dtype that the encoders compute in, such as ``bfloat16``; the wider one where they differ."""
        found = [encoder.dtype for part, encoder in self.system.named_parts() if part.role == "encoder"]
        return str(max(found, key=lambda dtype: dtype.itemsize)).removeprefix("torch.")

    def describe(self) -> dict[str, Any]:
        """See :func:`describe_encoders`."""
        return describe_encoders(self.system)

    @torch.no_grad()
    def forward(self, canvas: Tensor, boxes: Sequence[Tensor]) -> Features:
        """Inputs of the connectors for N canvases; arguments as for ``System.look``."""
        looked = self.system.look(canvas, boxes)
        maps = [] if self._map_of is None else looked.seen[self._map_of].maps
        high, finer = (maps[-1] if maps else None), (maps[:-1] if _reads_all(self.system) else ())
        objects = None
        if self._detector is not None:
            found = looked.seen[self._detector].detected
            assert found is not None
            parts = (found.states, found.boxes, found.scores[..., None], found.logits)
            objects = torch.cat([part.float() for part in parts], dim=-1)  # (N, K, C_o)
        return Features(looked.seen[self._low].tokens, high, looked.pooled, objects, finer)


def describe_encoders(system: Any) -> dict[str, Any]:
    """All that the features of a canvas depend on, but for the canvas and its boxes, as plain values.

    Parameters that are split over processes are gathered, so that all processes must call this together.
    """
    boxes, fusion = system.part_of(ObjectReader), system.part_of(Fusion)
    about: dict[str, Any] = {"version": _VERSION, "fusion": fusion is not None, "boxes": boxes is not None}
    if _encoder_keys(system)[2] is not None:
        about["objects"] = True
    if _reads_all(system):
        about["all_maps"] = True
    for part, encoder in system.named_parts():
        if part.role == "encoder":
            spec = encoder.spec
            about[f"{part.config}.image_size"] = spec.image_size
            about[f"{part.config}.normalization"] = repr((tuple(spec.mean), tuple(spec.std)))
            about[f"{part.config}.dtype"] = str(encoder.dtype).removeprefix("torch.")
            about[f"{part.config}.weights"] = _digest(encoder)
    if boxes is not None:
        about["box_projector"] = type(boxes).__name__
        about |= {f"box_projector.{name}": value for name, value in boxes.pooling.items()}
    return about


def compare_encoders(stated: Mapping[str, Any], own: Mapping[str, Any], fusion: str = "the fusion") -> list[str]:
    """Needs of a model that features do not meet, in words; features may hold more than it reads.

    Args:
        stated: How the encoders of the features were described.
        own: How those of the model are.
        fusion: What the fusion of the model is called.
    """
    readers = {"fusion": f"map for {fusion}", "boxes": "boxes", "objects": "objects of a detector"}
    differences = [
        f"the cache holds no {reader}" for part, reader in readers.items() if own.get(part) and not stated.get(part)
    ]
    if own.get("all_maps") and stated.get("fusion") and not stated.get("all_maps"):
        differences.append(f"the cache holds the last map alone, and {fusion} reads those of all stages")
    known = {key: value for key, value in own.items() if key not in (*readers, "all_maps")}
    for key, value in known.items():
        if key in stated and stated[key] != value:
            differences.append(f"{key} was {stated[key]}, now {value}")
    lacking = sorted({key.partition(".")[0] for key in known if key not in stated})
    if lacking and not differences:
        differences.append(f"it says nothing of {', '.join(lacking)}")
    return differences


def _encoder_keys(system: Any) -> tuple[str, str | None, str | None]:
    """Keys of the encoder that gives tokens, of the one that gives maps, and of the detector."""
    encoders = [(part.key, module.spec) for part, module in system.named_parts() if part.role == "encoder"]
    low = next(key for key, spec in encoders if spec.tokens)
    high = next((key for key, spec in encoders if spec.stage_channels and not spec.tokens), None)
    return low, high, next((key for key, spec in encoders if spec.objects), None)


def _reads_all(system: Any) -> bool:
    """Whether a fusion reads the maps of all stages."""
    fusion = system.part_of(Fusion)
    return fusion is not None and fusion.reads == "all"


def _widths(spec: Spec) -> list[int]:
    """Channels of an object's state, box, score and logits."""
    return [spec.object_channels, 4, 1, len(spec.classes) + spec.has_rest]


def _apart(objects: Tensor, spec: Spec) -> Detected:
    """What a detector found, of ``(N, K, C_o)``."""
    states, boxes, scores, logits = objects.split(_widths(spec), dim=-1)
    return Detected(states, boxes.float(), scores[..., 0].float(), logits.float())


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
