"""Cost of a feature cache: its size on disk, what it saves, and after how many epochs filling it has paid."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mg_llava.data.config import find_dataset, walk_sources
from mg_llava.data.features.file import picture_bytes
from mg_llava.data.settings import Draw, build_group
from mg_llava.features import FEATURE_DTYPES, FeatureDtype, blocks_of
from mg_llava.models.vision import FeatureExtractor
from mg_llava.planning.checks import drawn_records
from mg_llava.planning.flops import POOLING, Flops

DISK = 2e9
"""Bytes per second at which all processes together are assumed to read and write: one NVMe disk, or a good network."""


@dataclass(frozen=True)
class CacheCost:
    """A cache of one dtype.

    Attributes:
        dtype: How values are kept.
        picture: Bytes of a picture.
        total: Bytes of all pictures.
        hours_to_fill: Encoding every picture once, or writing, whichever takes longer.
        hours_per_epoch: What an epoch takes with the cache: training without encoders, or reading.
        hours_saved: By an epoch; negative where reading takes longer than training from pictures.
        epochs: After which filling has paid, over all runs on these pictures; None for never.
        rate: Bytes per second from which reading is hidden behind the training.
    """

    dtype: FeatureDtype
    picture: int
    total: int
    hours_to_fill: float
    hours_per_epoch: float
    hours_saved: float
    epochs: float | None
    rate: float


@dataclass(frozen=True)
class FeaturePlan:
    """Caches of all dtypes.

    Attributes:
        pictures: How many are kept.
        disk: Bytes per second of all processes together.
        share: Of the operations of a training step that encoders and box pooling are.
        costs: For each dtype.
    """

    pictures: int
    disk: float
    share: float
    costs: list[CacheCost]


def plan_feature_cache(
    config: Any, model: Any, flops: Flops, samples: int, throughput: float, boxes: int, disk: float = DISK
) -> FeaturePlan:
    """Plan the cache of a training set whose samples have a picture each.

    Args:
        config: The training config.
        model: Its model, on any device.
        flops: Operations of a sample.
        samples: Samples of an epoch.
        throughput: Operations per second of all GPUs, as they are used.
        boxes: Box tokens of a picture.
        disk: Bytes per second of all processes together.

    Raises:
        ValueError: ``disk`` is not positive.
    """
    if disk <= 0:
        raise ValueError(f"disk is {disk}; it must be a positive number of bytes per second")
    saved_parts = [POOLING, *(part.key for part, _ in model.named_parts() if part.role == "encoder")]
    encoders = sum(flops.training.get(part, 0.0) for part in saved_parts)
    whole = sum(flops.training.values())
    pictures = _count_pictures(config, samples)
    sizes = FeatureExtractor(model).sizes
    rest, without_cache = samples * (whole - encoders) / throughput, samples * whole / throughput
    costs = []
    for dtype in FEATURE_DTYPES:
        # a stand-in for "no box" is kept beside the boxes
        size = picture_bytes(blocks_of(**sizes, dtype=dtype), boxes + 1 if sizes["pooled"] else 0)
        epoch, fill = max(rest, samples * size / disk), pictures * max(encoders / throughput, size / disk)
        saved = without_cache - epoch
        pays_after = fill / saved if saved > 0 else None
        hours = fill / 3600, epoch / 3600, saved / 3600
        costs.append(CacheCost(dtype, size, size * pictures, *hours, pays_after, samples * size / rest))
    return FeaturePlan(pictures, disk, encoders / whole, costs)


def describe_feature_cache(plan: FeaturePlan) -> Iterator[str]:
    """The plan as lines of text."""
    yield (
        f"\nfeature cache of {plan.pictures:,} pictures at {plan.disk / 1e9:g} GB/s for all GPUs; "
        f"it saves {plan.share:.0%} of the FLOPs"
    )
    head = "".join(f"{name:>10}" for name in ("MB/picture", "GB", "fill", "epoch", "saved"))
    yield f"  {'dtype':<10} {head}{'pays after':>14}{'hidden from':>13}"
    for cost in plan.costs:
        pays = "never" if cost.epochs is None else f"{cost.epochs:.1f} epochs"
        shown = (_hours(value) for value in (cost.hours_to_fill, cost.hours_per_epoch, cost.hours_saved))
        hours = "".join(f"{text:>10}" for text in shown)
        yield (
            f"  {cost.dtype:<10} {cost.picture / 1e6:>10.3f}{cost.total / 1e9:>10,.1f}{hours}{pays:>14}"
            f"{cost.rate / 1e9:>8.2f} GB/s"
        )


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if abs(hours) >= 0.1 else f"{hours * 3600:.1f} s"


def _count_pictures(config: Any, samples: int) -> int:
    """Pictures that are kept: each once, however often its sample comes."""
    draws: list[Draw] = [build_group("draw", source.get("draw")) for source in walk_sources(find_dataset(config))]
    if all(drawn.repeat <= 1 for drawn in draws):
        return samples
    try:
        return round(sum(records * min(1, repeat) for records, repeat in drawn_records(config)))
    except FileNotFoundError:
        return samples
