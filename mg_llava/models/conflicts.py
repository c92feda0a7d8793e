"""Parts of MG-LLaVA that do not go together, found before weights are read."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mg_llava.compat import whole_parameters
from mg_llava.models.interfaces import FramePooler, Fusion, Merger, ObjectReader, Spec
from mg_llava.models.parts import (
    argument_faults,
    build_part,
    check_part,
    is_of,
    kind_of,
    raise_together,
    size_faults,
    stated_by,
    taken,
    try_part,
)


def refuse_conflicts(
    low: Spec,
    high: Spec | None,
    readers: Mapping[str, Any],
    merger: Any,
    poolers: Mapping[str, Any],
    projector: Any,
    llm: Any = None,
    trains: Sequence[str] | None = None,
) -> None:
    """Look at parts, built or as configs, before they are added to a system.

    Args:
        low: Of the low-resolution encoder.
        high: Of the high-resolution encoder.
        readers: What reads the maps, by name: part, its interface, and the sizes that it is given.
        merger: Lets tokens and features of boxes read each other.
        poolers: Make fewer tokens, by name.
        projector: Of the visual tokens.
        llm: Its width is asked where a part states one.
        trains: Names of the parts that are trained; None for those that always are.

    Raises:
        ValueError: With every reason in one message.
    """
    problems = _faults(low, high, readers)
    (fusion, _, sizes), (boxes, _, box_sizes) = readers["fusion"], readers["box_projector"]
    width = _width(llm, projector, boxes)
    merged: Any = None
    reader: Any = None
    if low.tokens and high is not None and high.stage_channels:  # else sizes are not known
        merged, faults = try_part("fusion", fusion, **sizes) if is_of(fusion, Fusion) else (None, [])
        problems += faults
        reader, faults = _try_boxes(boxes, box_sizes, merger, width)
        problems += faults
        if fusion is None and "high_res_encoder" in (trains or ()):
            problems += unread_faults("high_res_encoder", high, boxes, reader)
    channels = low.channels if fusion is None else getattr(merged, "out_channels", 0)
    problems += _merger_faults(low, channels, boxes, reader, merger)
    made, faults = _try_projector(low, projector, channels, width)
    problems += faults
    problems += _token_faults(low, merged, channels, projector, made, poolers)
    raise_together(problems)


def tokens_after(tokens: int, *parts: Any) -> int:
    """Tokens that parts make of so many, one after the other; those without ``out_tokens`` leave them as many."""
    for part in parts:
        tokens = part.out_tokens(tokens) if hasattr(part, "out_tokens") else tokens
    return tokens


def grid_of(projector: Any, low: Spec) -> dict[str, int]:
    """The grid of the low-resolution tokens, for a projector that takes one and states none; empty for others.

    Raises:
        ValueError: The tokens form no square.
    """
    asks = isinstance(projector, Mapping) and "grid" not in projector and taken(projector, grid=0)
    return {"grid": low.grid if low.tokens else 1} if asks else {}


def unread_faults(name: str, spec: Spec, boxes: Any, reader: Any) -> list[str]:
    """Why an encoder whose maps only boxes are read from, or nothing is, cannot be trained.

    Args:
        name: Its name in the config.
        spec: Its spec.
        boxes: What reads boxes, as it is given.
        reader: The same without weights; None where it cannot be built.
    """
    stages = len(spec.stage_channels)
    if boxes is not None:
        read = None if reader is None else reader.pooling.get("stages")
        if read is None or stages - 1 in [index % stages for index in read]:
            return []
    return [
        f"{name} is in trains, but nothing reads its last stage, which would get no gradient; take it out of trains, "
        "or have what reads boxes read stage -1"
    ]


def _faults(low: Spec, high: Spec | None, readers: Mapping[str, Any]) -> list[str]:
    """Reasons why encoders and what reads their maps do not go together; readers with interface and sizes."""
    problems = []
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
    if is_of(fusion, Fusion) and low.tokens and high is not None and high.stage_strides:
        try:
            problems += kind_of(fusion).conflicts(low, high, stated_by(fusion))
        except ValueError as error:  # its tokens are on no grid
            problems.append(f"fusion: {error}")
    return problems


def _try_boxes(part: Any, sizes: Mapping[str, Any], merger: Any, width: int | None) -> tuple[Any, list[str]]:
    """What reads boxes, without weights, and its faults; a width of None is not known."""
    if not is_of(part, ObjectReader):
        return None, []
    is_projected = getattr(kind_of(merger), "keeps_objects", True)
    out_channels = (width or 1) if is_projected else None
    is_known = width is not None or not is_projected
    problems = size_faults("box_projector", part, {"out_channels": out_channels} if is_known else {})
    made, faults = try_part("box_projector", part, **sizes, out_channels=out_channels)
    return made, problems + faults


def _merger_faults(low: Spec, channels: int, boxes: Any, reader: Any, merger: Any) -> list[str]:
    """Reasons why a merger cannot read tokens and boxes.

    Args:
        low: Of the low-resolution encoder.
        channels: Of the tokens after the fusion, 0 where they are not known.
        boxes: What reads boxes, as it is given.
        reader: The same without weights; None where it cannot be built.
        merger: As it is given.
    """
    found = {"visual_channels": channels, "object_channels": getattr(reader, "in_channels", 0)}
    sizes = taken(merger, low_channels=low.channels, **found)
    problems = check_part("merger", merger, Merger, {name: size for name, size in sizes.items() if size})
    if merger is not None and boxes is None:
        problems.append("merger reads boxes, but box_projector is None; give one or leave it out")
    if is_of(merger, Merger):
        problems += try_part("merger", merger, **{name: size or 1 for name, size in sizes.items()})[1]
    return problems


def _try_projector(low: Spec, projector: Any, channels: int, width: int | None) -> tuple[Any, list[str]]:
    """The projector, without weights, and its faults; channels of 0 and a width of None are not known."""
    if not isinstance(projector, Mapping | nn.Module):
        return None, [f"projector is {projector!r}; give one, such as dict(type='mg_llava.MLPProjector')"]
    known = {name: size for name, size in (("in_channels", channels), ("out_channels", width)) if size}
    problems = [f"projector: {fault}" for fault in argument_faults(projector)]
    problems += size_faults("projector", projector, known)
    sizes = {"in_channels": channels or 1, "out_channels": width or 1}
    try:
        made, faults = try_part("projector", projector, **sizes, **grid_of(projector, low))
    except ValueError as error:  # the tokens are on no grid; of its settings is told all the same
        return None, [*problems, f"projector: {error}", *try_part("projector", projector, **sizes, grid=1)[1]]
    return made, problems + faults


def _token_faults(
    low: Spec, merged: Any, channels: int, projector: Any, made: Any, poolers: Mapping[str, Any]
) -> list[str]:
    """Reasons why projector and poolers cannot read as many tokens as there are.

    The fusion does not see object images, the projector does. A projector without ``conflicts`` reads any number.

    Args:
        low: Of the low-resolution encoder.
        merged: The fusion without weights, or None.
        channels: Of the tokens after it, 0 where they are not known.
        projector: As it is given.
        made: The same without weights; None where it cannot be built.
        poolers: By name.
    """
    problems: list[str] = []
    there: dict[str, Any] = {}
    for name, pooler in poolers.items():
        problems += check_part(name, pooler, FramePooler, {})
        tried, faults = try_part(name, pooler) if is_of(pooler, FramePooler) else (None, [])
        problems += faults
        if tried is not None:
            there[name] = pooler
    if not low.tokens or not channels or made is None:  # tokens cannot be counted
        return problems
    fused = {"frame_pooler": tokens_after(low.tokens, merged), "object_pooler": low.tokens}
    conflicts = getattr(kind_of(projector), "conflicts", None)
    if conflicts is not None:
        settings = {"encoder_tokens": low.tokens, **grid_of(projector, low), **stated_by(projector)}
        read = {fused["frame_pooler"], *(fused[name] for name in there)}
        problems += [fault for tokens in sorted(read) for fault in conflicts(tokens, settings)]
    for name, pooler in there.items():
        faults = kind_of(pooler).conflicts(tokens_after(fused[name], made), stated_by(pooler))
        problems += [f"{name}: {fault}" for fault in faults]
    if "object_pooler" in there and channels != low.channels:
        problems.append(
            f"object_pooler reads object images at low resolution, in {low.channels} channels, and the fusion makes "
            f"{channels} of them for the projector; use a fusion that keeps them, such as ConvGateFusion"
        )
    return problems


def _width(llm: Any, *parts: Any) -> int | None:
    """D of an LLM, without its weights, where a part states one; None where none does or nothing says it."""
    if llm is None or not any("out_channels" in stated_by(part) for part in parts):
        return None
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), whole_parameters():
            return int(build_part(llm).get_input_embeddings().embedding_dim)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError):  # its own message comes when it is loaded
        return None
