"""The settings of a data set in groups: each a small frozen value, or a dict of its fields in a config."""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from mg_llava.batch import TokenCount
from mg_llava.data.boxes.augment import Augmentation, CropAugmentation
from mg_llava.data.boxes.convert import BadRecord
from mg_llava.data.boxes.policy import MissingBox
from mg_llava.data.choices import wrong_choices, wrong_count
from mg_llava.data.faults import BadSample
from mg_llava.data.features.cache import FeatureCache
from mg_llava.data.features.source import MissingFeatures
from mg_llava.data.pictures.places import check_folder
from mg_llava.data.text.budget import TokenBudget
from mg_llava.data.text.prompt import PromptPart
from mg_llava.registry import MODELS
from mg_llava.work.tar_index import TarError


@dataclass(frozen=True)
class FaultPolicy:
    """What happens about records, pictures and boxes that are missing or cannot be used.

    Args:
        bad_image: ``error`` or ``skip``: about pictures that cannot be read. ``skip`` takes the next sample that works
            in place of the whole sample.
        no_label: The same for samples in which truncation leaves no token with loss.
        over_budget: The same for samples whose pictures alone exceed the context.
        missing_box: About pictures without a box record (see ``boxes.policy.MissingBoxes``).
        bad_box_record: ``error`` or ``drop``: about malformed box records.
        missing_features: ``error``, or ``picture``: open the pictures of samples that the feature cache lacks.
        max_bad_samples: Number of different records that may be skipped, in each process, before the run stops with an
            error.
        outside_pictures: ``error`` or ``allow``: about pictures outside of the image folder: under absolute paths,
            above it, or behind links. An error counts as a picture that cannot be read.
        max_pixels: Largest number of pixels of a picture that is read (see ``pictures.files.open_picture``).

    Raises:
        ValueError: A policy or limit is unknown.
    """

    bad_image: BadSample = "error"
    no_label: BadSample = "skip"
    over_budget: BadSample = "error"
    missing_box: MissingBox = "error"
    bad_box_record: BadRecord = "error"
    missing_features: MissingFeatures = "error"
    outside_pictures: Literal["error", "allow"] = "error"
    max_bad_samples: int = 100
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        wrong = [
            *wrong_choices(self),
            *wrong_count("max_bad_samples", self.max_bad_samples, least=0),
            *wrong_count("max_pixels", self.max_pixels, none="Pillow's limit"),
        ]
        if wrong:
            raise ValueError("; ".join(wrong))


@dataclass(frozen=True)
class BoxUse:
    """What training does with boxes.

    Args:
        box_augmentation: Changes the boxes of a picture before they are filtered, or a dict to build it from.
        shuffle_boxes: Shuffle the boxes of each picture.
        count_boxes: Whether boxes count in ``modality_length``.
        proposer: Finds boxes for ``missing_box="detect"``, or a dict to build it from.
        crop_augmentation: Changes object images, or a dict to build it from.
        prompt: Change the text by the boxes, or dicts to build them from (see ``text.prompt.PromptPart``).
        extra: Reads text and boxes for one system alone, such as ``text.pieces.PieceWriter``, or a dict to build it
            from: its lists by name, with an entry for each picture, are the ``extra`` of a sample.
        targets: Box file with all annotated objects of pictures, which teach a system to detect; under ``data_root``.
            Pictures that it lacks teach nothing of that kind.
    """

    box_augmentation: Augmentation | Mapping[str, Any] | None = None
    shuffle_boxes: bool = False
    count_boxes: bool = True
    proposer: Any = None
    crop_augmentation: CropAugmentation | Mapping[str, Any] | None = None
    prompt: Sequence[PromptPart | Mapping[str, Any]] = ()
    extra: Any = None
    targets: str | Path | None = None


@dataclass(frozen=True)
class Draw:
    """Which records an epoch has, and the seed of everything that is drawn.

    Args:
        repeat: Times that each record comes in an epoch; 0.5 takes half of the records, drawn with ``seed``.
        max_dataset_length: Keep this many records, drawn with ``seed``; None for all.
        seed: Also of the order of boxes and their augmentation.
        anew: Draw the order of boxes and their augmentation anew in each epoch; False draws as in the first one.

    Raises:
        ValueError: Nothing would be left.
    """

    repeat: float = 1.0
    max_dataset_length: int | None = None
    seed: int = 0
    anew: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.repeat, int | float) or not 0 < self.repeat < math.inf:
            raise ValueError(f"repeat is {self.repeat!r}; it must be positive; leave the source out instead")
        wrong = [
            *wrong_count("max_dataset_length", self.max_dataset_length, none="all records"),
            *wrong_count("seed", self.seed, least=0),
        ]
        if wrong:
            raise ValueError("; ".join(wrong))


@dataclass(frozen=True)
class Caches:
    """What is kept from one start to the next.

    Args:
        token_cache: Folder that keeps token ids (see ``text.token_cache``) and what was learned of the records; None
            for no cache.
        feature_cache: Folder with what the frozen encoders give for each picture (see ``features.cache``), or an open
            ``FeatureCache``: samples then hold that in place of pictures. None to open pictures.
    """

    token_cache: str | Path | None = None
    feature_cache: str | Path | FeatureCache | None = None


GROUPS: dict[str, type] = dict(budget=TokenBudget, boxes=BoxUse, faults=FaultPolicy, draw=Draw, caches=Caches)
"""Arguments of a data set that are groups of settings."""

MEMBERS = {field.name: group for group, kind in GROUPS.items() for field in fields(kind) if field.name != "tokens"}
"""Names of single settings, and the group that each belongs to."""


def build_group(name: str, spec: Any) -> Any:
    """A group of settings from a dict of its fields; None gives the defaults, a value itself.

    Raises:
        TypeError: It is something else.
        ValueError: A field is unknown, or its value is not allowed.
    """
    kind = GROUPS[name]
    if isinstance(spec, kind):
        return spec
    if spec is not None and not isinstance(spec, Mapping):
        raise TypeError(f"{name} is a {type(spec).__name__}; allowed: {kind.__name__}, or a dict of its fields")
    given = {key: value for key, value in (spec or {}).items() if key != "type"}
    wrong = list(unknown_settings(given, [field.name for field in fields(kind)], name))
    if wrong:
        raise ValueError("; ".join(wrong))
    return kind(**given)


def build_tokens(spec: TokenCount | Mapping[str, Any] | None) -> TokenCount:
    """Tokens of a placeholder: as they are, from a dict of numbers, or asked from a registered function of models."""
    if isinstance(spec, Mapping):
        return MODELS.build(dict(spec)) if "type" in spec else TokenCount(**spec)
    return TokenCount(0) if spec is None else spec


def picture_problems(
    image_folder: str | None,
    processor: Any,
    budget: TokenBudget,
    tokens: TokenCount | None = None,
    crops: bool = False,
) -> Iterator[Exception]:
    """Errors of a data set's settings that matter where records have pictures, or ``crops``, object images."""
    if processor is None or image_folder is None:
        yield ValueError("there are records with pictures; set image_folder and picture_processor")
    else:
        try:
            check_folder(image_folder)
        except (FileNotFoundError, TarError) as error:
            yield error
    if budget.context_length is not None and tokens is None:
        yield ValueError("there are records with pictures; context_length needs tokens")
    if crops and tokens is not None and not tokens.per_crop:
        yield ValueError(
            "there are records with object images, which the model does not read; give it an object_pooler, such as "
            "dict(type='mg_llava.FramePooling', side=4)"
        )


def merge_settings(defaults: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings on top of defaults; of groups that both give as dicts, field by field."""
    merged = {**defaults, **settings}
    for name in GROUPS:
        parts = defaults.get(name), settings.get(name)
        if all(isinstance(part, Mapping) for part in parts):
            merged[name] = {**parts[0], **parts[1]}  # type: ignore[dict-item]
    return merged


def unknown_settings(given: Iterable[str], known: Iterable[str], owner: str) -> Iterator[str]:
    """A sentence for each name that is no setting: the group that it belongs to, or the nearest one."""
    known = list(known)
    for name in sorted(set(given) - set(known)):
        near = difflib.get_close_matches(name, [*known, *MEMBERS], 1)
        if near and near[0] in MEMBERS and near[0] not in known:
            hint = f"write {MEMBERS[near[0]]}=dict({near[0]}=...)"
        else:
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        yield f"{owner} has no setting {name}; {hint}"
