"""Everything that is registered as a model part, by role, and the toy system that each is tested in.

A new part is tested by being registered: the system gives it the sizes that follow from other parts. Where its class
needs more, TOYS has it; a new system has its config in SYSTEMS.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mg_llava.models.adapters.biases import AddedBiases
from mg_llava.models.adapters.prompts import GatedPrompts
from mg_llava.models.interfaces import Encoder, FramePooler, Fusion, Loss, Merger, ObjectReader
from mg_llava.models.losses.boxes import RefinementLoss
from mg_llava.models.losses.grounding import GroundedLoss
from mg_llava.models.parts import kind_of
from mg_llava.models.queries.branches import PromptBranch, SharedQueries
from mg_llava.models.queries.heads import LyricsHeads
from mg_llava.models.queries.mq_former import MQFormer, PieceReader
from mg_llava.models.queries.refinement import RefinementHead
from mg_llava.models.system import System
from mg_llava.registry import MODELS
from tests import toy
from tests.detection import toys

TIMM = "test_convnext2.r160_in1k"
TIMM_SIZE = 64
TIMM_TOKENS = "test_vit.r160_in1k"


@dataclass(frozen=True)
class Case:
    """A system of toy size in which a part, or the system itself, is under test.

    Attributes:
        name: Of the part.
        role: What it is.
        model: Config of the system.
    """

    name: str
    role: str
    model: dict[str, Any]

    @property
    def kind(self) -> type[System]:
        """Class of the system."""
        return kind_of(self.model)


TOYS: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
    "CLIPEncoder": lambda paths: {"path": paths["clip"], "dtype": "float32"},
    "OpenCLIPConvNeXtEncoder": lambda paths: {"path": paths["convnext"], "image_size": toy.CANVAS, "dtype": "float32"},
    "TimmEncoder": lambda paths: {
        "name": TIMM,
        "image_size": TIMM_SIZE,
        "checkpoint": paths["timm"],
        "dtype": "float32",
    },
    "SAMEncoder": lambda paths: {"path": paths["sam"], "pool": 2, "dtype": "float32"},
    "TimmTokenEncoder": lambda paths: {
        "name": TIMM_TOKENS,
        "image_size": 32,
        "class_token": False,  # the other parts of the toy need a square
        "checkpoint": paths["timm_tokens"],
        "dtype": "float32",
    },
    "TransformerDetector": lambda paths: {"path": paths["detector"], "objects": 4, "dtype": "float32"},
    "CellDetector": lambda paths: {"path": paths["cells"], "image_size": toy.CANVAS, "objects": 3, "dtype": "float32"},
    "build_language_model": lambda paths: {"path": paths["llm"], "tuning": "full", "dtype": "float32"},
}
"""Arguments that no system gives, from the folders of :func:`write_all`."""


def _clip(paths: dict[str, str]) -> dict[str, Any]:
    return {"type": "mg_llava.CLIPEncoder", **TOYS["CLIPEncoder"](paths)}


def _refiner(paths: dict[str, str]) -> dict[str, Any]:
    """Parts that both stages of Lyrics have."""
    sizes = dict(width=16, layers=2, heads=2, intermediate=24, vocabulary=len(toy.PIECES) + 1, positions=64)
    return {
        "visual_encoder": _clip(paths),
        "detector": {"type": "mg_llava.TransformerDetector", **TOYS["TransformerDetector"](paths)},
        "mq_former": {"type": "mg_llava.MQFormer", "queries": [3, 4], **sizes},
        "pieces": {"type": "mg_llava.PieceReader", "vocabulary": toy.PIECES},
    }


SYSTEMS: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
    "MGLLaVA": lambda paths: toy.model_config(paths, "full"),
    "MRMLLM": lambda paths: {
        "type": "mg_llava.MRMLLM",
        "llm": toy.model_config(paths, "full")["llm"],
        "scene_encoder": _clip(paths),
        "detector": {"type": "mg_llava.TransformerDetector", **TOYS["TransformerDetector"](paths)},
        "prompts": {"type": "mg_llava.GatedPrompts", "prompts": 3},
        **{
            name: {"type": "mg_llava.PromptBranch", "width": 16, "blocks": 1, "heads": 2}
            for name in ("scene", "objects")
        },
        "shared_queries": {"type": "mg_llava.SharedQueries", "width": 16, "queries": 5, "heads": 2},
        "refine": {"type": "mg_llava.RefinementHead", "width": 16, "heads": 2},
        "biases": {"type": "mg_llava.AddedBiases"},
    },
    "Lyrics": lambda paths: {
        "type": "mg_llava.Lyrics",
        **_refiner(paths),
        **{name: toy.model_config(paths, "full")[name] for name in ("llm", "projector")},
    },
    "LyricsPretrain": lambda paths: {
        "type": "mg_llava.LyricsPretrain",
        **_refiner(paths),
        "heads": {"type": "mg_llava.LyricsHeads", "embedding": 8},
        "losses": [{"type": f"mg_llava.{name}"} for name in ("AlignmentLoss", "CaptionLoss", "SpatialLoss")],
    },
    "TwoViews": lambda paths: {  # of the README, where it was added
        "type": "mg_llava.TwoViews",
        "first_encoder": {**_clip(paths), "layer": -1},
        "second_encoder": _clip(paths),
        **{name: toy.model_config(paths, "full")[name] for name in ("llm", "projector")},
    },
}
"""Config of each registered system at toy size."""

HELPERS = {"count_tokens", "JoinedTransport"}
"""What is registered and builds no part."""

ROLES: dict[str, type] = {
    "system": System,
    "encoder": Encoder,
    "fusion": Fusion,
    "objects": ObjectReader,
    "merger": Merger,
    "frames": FramePooler,
    "loss": Loss,
    "prompts": GatedPrompts,
    "branch": PromptBranch,
    "shared queries": SharedQueries,
    "refinement": RefinementHead,
    "mq former": MQFormer,
    "pieces": PieceReader,
    "heads": LyricsHeads,
    "biases": AddedBiases,
}
"""Interface of each role."""


_OF_MR_MLLM = {"branch": "scene", "shared queries": "shared_queries", "refinement": "refine", "biases": "biases"}
"""Places of the roles that MR-MLLM alone has."""
_OF_LYRICS = {"mq former": "mq_former", "pieces": "pieces", "heads": "heads"}
"""Of those that Lyrics' first stage alone has."""


def write_all(folder: Path) -> dict[str, str]:
    """The toy folders, with the weights of a timm model."""
    import timm
    from safetensors.torch import save_file

    paths = toy.write_all(folder)
    torch.manual_seed(4)
    files = {"timm": folder / "timm.safetensors", "timm_tokens": folder / "timm_tokens.safetensors"}
    for name, file in zip((TIMM, TIMM_TOKENS), files.values(), strict=True):
        sizes = {"img_size": 32} if name == TIMM_TOKENS else {}
        save_file(timm.create_model(name, pretrained=False, **sizes).state_dict(), file)
    paths |= {name: str(file) for name, file in files.items()}
    return {
        **paths,
        "detector": str(toys.write_detr(folder / "detector")),
        "cells": str(toys.write_cells(folder / "cells", paths)),
        "sam": str(toy.write_sam(folder / "sam")),
    }


def registered() -> dict[str, Any]:
    """What this package registers as model parts, by name."""
    MODELS.import_from_location()
    return {
        name: part
        for name, part in MODELS.module_dict.items()
        if part.__module__.split(".")[0] == "mg_llava" and name not in HELPERS
    }


def role_of(part: Any) -> str:
    """The role of a registered class or function.

    Raises:
        AssertionError: It has none, so that nothing would test it.
    """
    if isinstance(part, type):
        for role, kind in ROLES.items():
            if issubclass(part, kind):
                return role
    arguments = inspect.signature(part).parameters
    if isinstance(part, type) and issubclass(part, nn.Module) and {"in_channels", "out_channels"} <= set(arguments):
        return "projector"
    if part.__name__ in TOYS:
        return "llm"
    raise AssertionError(
        f"{part.__name__} is registered in MODELS, but nothing tests it: derive it from an interface of "
        f"mg_llava/models/interfaces.py ({', '.join(kind.__name__ for kind in ROLES.values())}); for a new kind of "
        "part add its interface to ROLES in tests/contract/cases.py and its place in a system to `case_of`; a "
        "what builds no part belongs into HELPERS"
    )


def case_of(part: Any, paths: dict[str, str], **settings: Any) -> Case:
    """The toy system with a part in its place.

    Args:
        part: A registered class or function.
        paths: Folders of the toys.
        **settings: Arguments of the part, where TOYS does not have them.
    """
    role, name = role_of(part), part.__name__
    if role == "system":
        assert name in SYSTEMS, (
            f"{name} is a system without a toy: add its config at toy size to SYSTEMS in {__file__}"
        )
        return Case(name, role, SYSTEMS[name](paths))
    toys = [TOYS[base.__name__](paths) for base in getattr(part, "__mro__", (part,)) if base.__name__ in TOYS]
    config = {"type": f"mg_llava.{name}", **(toys[0] if toys else {}), **settings}
    if role in _OF_MR_MLLM or (role == "encoder" and part.describe(config).objects):
        system = SYSTEMS["MRMLLM"](paths)
        place = _OF_MR_MLLM.get(role, "detector")
        return Case(name, role, {**system, place: {**system[place], **config}})
    if part is RefinementLoss:
        return Case(name, role, {**SYSTEMS["MRMLLM"](paths), "losses": [{"type": "mg_llava.LanguageLoss"}, config]})
    if role in _OF_LYRICS:
        system, place = SYSTEMS["LyricsPretrain"](paths), _OF_LYRICS[role]
        return Case(name, role, {**system, place: {**system[place], **config}})
    if role == "loss" and issubclass(part, GroundedLoss):
        return Case(name, role, {**SYSTEMS["LyricsPretrain"](paths), "losses": [config]})
    system = SYSTEMS["MGLLaVA"](paths)
    if role == "loss":
        return Case(name, role, {**system, "losses": [config]})
    places = {
        "fusion": "fusion",
        "objects": "box_projector",
        "merger": "merger",
        "frames": "frame_pooler",
        "projector": "projector",
        "llm": "llm",
        "prompts": "prompts",
    }
    if role == "encoder":
        missing = f"{name} is not built from sizes alone: add its toy arguments to TOYS in {__file__}"
        assert toys or settings, missing
        spec = part.describe(config)
        places[role] = "low_res_encoder" if spec.tokens else "high_res_encoder"
        if not spec.tokens and spec.image_size // spec.stage_strides[-1] != 2:
            system["fusion"] = {**system["fusion"], "unequal_grids": "interpolate"}
    if role == "llm":
        config = {**system["llm"], **config}
    return Case(name, role, {**system, places[role]: config})
