"""Building the parts of a model, and saying which of them do not go together."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from torch import nn

from mg_llava.models.weights.parts import PARTS
from mg_llava.registry import MODELS

ModuleOrConfig = nn.Module | dict[str, Any]

_FASTER = ("loss_kernel", "compile_vision")


def build_part(part: ModuleOrConfig | None, **sizes: Any) -> Any:
    """Build a part from its config, with sizes that follow from other parts; modules and ``None`` pass."""
    if not isinstance(part, dict):
        return part
    kind = part["type"]
    if isinstance(kind, str) and "." not in kind:
        kind = MODELS.get(kind)  # a plain name is ours, whatever scope a runner has made the default
    return MODELS.build({**sizes, **part, "type": kind})


def for_any_machine(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model without what makes training faster and needs a GPU, a package or a compiler for it."""
    return {key: value for key, value in settings.items() if key not in _FASTER}


def check_readers(high_res_encoder: ModuleOrConfig | None, **readers: ModuleOrConfig | None) -> None:
    """Whether the parts that read the high-resolution encoder have one.

    Raises:
        ValueError: They have none.
    """
    found = [name for name, part in readers.items() if part is not None]
    if high_res_encoder is None and found:
        raise ValueError(
            f"high_res_encoder is None, but {' and '.join(found)} would read it; give one or leave these out"
        )


def check_parts(
    low: Any,
    high: Any | None,
    fusion: ModuleOrConfig | None,
    fusion_sizes: dict[str, int],
    box_projector: ModuleOrConfig | None,
    box_sizes: dict[str, list[int]],
) -> None:
    """Whether encoders, fusion and box projector go together.

    Args:
        low: The low-resolution encoder, built.
        high: The high-resolution encoder, built.
        fusion: Built, or its config.
        fusion_sizes: What the encoders give to the fusion, by its arguments.
        box_projector: Built, or its config.
        box_sizes: What they give to the box projector.

    Raises:
        ValueError: They do not, with every reason in one message.
    """
    problems = [
        *_conflicts("fusion", fusion, fusion_sizes),
        *_conflicts("box_projector", box_projector, box_sizes),
    ]
    if high is not None and low.image_size > high.image_size:
        problems.append(
            f"the low-resolution view ({low.image_size} px) is larger than the canvas ({high.image_size} px)"
        )
    policy = fusion.get("unequal_grids") if isinstance(fusion, dict) else getattr(fusion, "unequal_grids", None)
    if fusion is not None and high is not None and low.grid != high.grid and policy != "interpolate":
        problems.append(
            f"the low-resolution encoder has a {low.grid} x {low.grid} grid ({low.image_size} px), the "
            f"high-resolution encoder {high.grid} x {high.grid} ({high.image_size} px at stride "
            f"{high.stage_strides[-1]}); use image_size={low.grid * high.stage_strides[-1]} for the "
            "high-resolution encoder, or unequal_grids='interpolate' in the fusion"
        )
    if problems:
        raise ValueError("these parts do not go together: " + "; ".join(problems))


def log_trained(model: nn.Module) -> None:
    """Write to the log what of each part is trained."""
    for part in (*PARTS, "visual_encoder", "visual_encoder_aux"):
        module = getattr(model, part, None)
        if module is not None:
            sizes = [(_numel(p), p.requires_grad) for p in module.parameters()]
            trained = sum(size for size, on in sizes if on)
            print_log(f"{part}: {trained:,} of {sum(s for s, _ in sizes):,} parameters trained", logger="current")


def _conflicts(name: str, part: ModuleOrConfig | None, sizes: dict[str, Any]) -> list[str]:
    """Sizes that the config of a part states otherwise than the encoders have them."""
    stated = part if isinstance(part, dict) else {}
    wrong = [key for key, size in sizes.items() if key in stated and _plain(stated[key]) != _plain(size)]
    return [f"{name} has {key}={stated[key]}, but the encoders give {sizes[key]}; leave it out" for key in wrong]


def _plain(size: int | Sequence[int]) -> int | list[int]:
    return size if isinstance(size, int) else list(size)


def _numel(parameter: nn.Parameter) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())
