"""Parts of MG-LLaVA that do not go together, found before weights are read."""

from collections.abc import Mapping
from typing import Any

import torch

from mg_llava.models.interfaces import FramePooler, Fusion, Merger, Spec
from mg_llava.models.parts import build_part, check_part, kind_of, raise_together, taken


def refuse_conflicts(
    low: Spec, high: Spec | None, readers: Mapping[str, Any], merger: Any, poolers: Mapping[str, Any], projector: Any
) -> None:
    """Look at parts, built or as configs, before they are added to a system.

    Args:
        low: Of the low-resolution encoder.
        high: Of the high-resolution encoder.
        readers: What reads the maps, by name: part, its interface, and the sizes that it is given.
        merger: Lets tokens and features of boxes read each other.
        poolers: Make fewer tokens, by name.
        projector: Of the visual tokens.

    Raises:
        ValueError: With every reason in one message.
    """
    problems = _faults(low, high, readers, merger)
    wrong = [fault for name, pooler in poolers.items() for fault in check_part(name, pooler, FramePooler, {})]
    fusion, kind, sizes = readers["fusion"]
    is_merged = high is not None and high.stage_channels and not check_part("fusion", fusion, kind, sizes)
    if low.tokens and not wrong and (fusion is None or is_merged):  # else tokens cannot be counted
        problems += _token_faults(low, fusion, sizes, projector, poolers)
    raise_together(problems + wrong)


def tokens_after(tokens: int, *parts: Any) -> int:
    """Tokens that parts make of so many, one after the other; those without ``out_tokens`` leave them as many."""
    for part in parts:
        tokens = part.out_tokens(tokens) if hasattr(part, "out_tokens") else tokens
    return tokens


def _faults(low: Spec, high: Spec | None, readers: Mapping[str, Any], merger: Any) -> list[str]:
    """Reasons why these parts do not go together; readers by name, with interface and sizes."""
    problems = check_part("merger", merger, Merger, {})
    if merger is not None and readers["box_projector"][0] is None:
        problems.append("merger reads boxes, but box_projector is None; give one or leave it out")
    for name, (part, kind, sizes) in readers.items():
        problems += check_part(name, part, kind, sizes if high is not None else {})
    there = [name for name, (part, _, _) in readers.items() if part is not None]
    if high is None and there:
        problems.append(
            f"high_res_encoder is None, but {' and '.join(there)} would read it; give one or leave these out"
        )
    if low.tokens == 0:
        problems.append(f"low_res_encoder is {low.type}, which gives no tokens; use one such as CLIPEncoder")
    if high is not None and not high.stage_channels:
        problems.append(f"high_res_encoder is {high.type}, which gives no maps; use one such as TimmEncoder")
    if high is not None and low.image_size > high.image_size:
        problems.append(
            f"the low-resolution view ({low.image_size} px) is larger than the canvas ({high.image_size} px)"
        )
    fusion = readers["fusion"][0]
    if issubclass(kind_of(fusion), Fusion) and low.tokens and high is not None and high.stage_strides:
        problems += kind_of(fusion).conflicts(low, high, _settings(fusion))
    return problems


def _token_faults(
    low: Spec, fusion: Any, sizes: Mapping[str, Any], projector: Any, poolers: Mapping[str, Any]
) -> list[str]:
    """Reasons why projector and poolers cannot read as many tokens as there are.

    The fusion does not see object images, the projector does. A projector without ``conflicts`` reads any number.
    """
    conflicts = getattr(kind_of(projector), "conflicts", None)
    there = {name: pooler for name, pooler in poolers.items() if pooler is not None}
    if conflicts is None and not there:
        return []
    with torch.device("meta"):
        merged = build_part(fusion, **sizes)
        channels = low.channels if merged is None else merged.out_channels
        widths = {"in_channels": channels, "out_channels": 1, **taken(projector, grid=low.grid)}
        made = build_part(projector, **widths) if there else None
    fused = {"frame_pooler": tokens_after(low.tokens, merged), "object_pooler": low.tokens}
    problems = []
    if conflicts is not None:
        read = {fused["frame_pooler"], *(fused[name] for name in there)}
        settings = {"grid": low.grid, **_settings(projector)}
        problems += [fault for tokens in sorted(read) for fault in conflicts(tokens, settings)]
    for name, pooler in there.items():
        faults = kind_of(pooler).conflicts(tokens_after(fused[name], made), _settings(pooler))
        problems += [f"{name}: {fault}" for fault in faults]
    if "object_pooler" in there and channels != low.channels:
        problems.append(
            f"object_pooler reads object images at low resolution, in {low.channels} channels, and the fusion makes "
            f"{channels} of them for the projector; use a fusion that keeps them, such as ConvGateFusion"
        )
    return problems


def _settings(part: Any) -> dict[str, Any]:
    return dict(part) if isinstance(part, Mapping) else vars(part)
