"""Parameters and operations of a leaf's model, counted without weights, for the table of a grid."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from mg_llava.experiments.grid import read_leaf

_logger = logging.getLogger(__name__)
_TEXT, _BOXES = 48, 6
"""Text and box tokens of the sample whose operations are counted: a question and its answer in the miniature."""


class LeafSizes(NamedTuple):
    """What a leaf's model costs.

    Attributes:
        connectors: Parameters of what stands between encoders and LLM.
        parameters: All parameters.
        flops: Operations of a forward pass over a sample with one picture; a multiply-add counts as two.
    """

    connectors: int
    parameters: int
    flops: float

    def cells(self) -> list[str]:
        """For a table with the heads of :data:`SIZE_HEADS`."""
        return [f"{self.connectors:,}", f"{self.parameters / 1e6:.2f} M", f"{self.flops / 1e9:.2f} G"]


SIZE_HEADS = ("connectors", "parameters", "FLOPs")


def leaf_sizes(leaf: str, options: Sequence[str] = ()) -> LeafSizes | None:
    """The sizes of a leaf's model with changes; None where it has none that can be built, which is logged."""
    try:
        return _count_sizes(leaf, options)
    except Exception as error:  # whatever the code of a leaf or a model raises
        _logger.warning("the sizes of %s are not known (%s: %s)", leaf, type(error).__name__, error)
        return None


def _count_sizes(leaf: str, options: Sequence[str]) -> LeafSizes | None:
    settings = read_leaf(leaf, options).get("model", {})
    if settings.get("type") is None:
        return None
    from mg_llava.planning.flops import Sample, count_flops  # the planner loads torch and transformers
    from mg_llava.planning.skeleton import build_skeleton

    skeleton = build_skeleton(settings)
    connectors = [module for part, module in skeleton.model.named_parts() if part.role == "connector"]
    count = sum(parameter.numel() for module in connectors for parameter in module.parameters())
    total = sum(parameter.numel() for parameter in skeleton.model.parameters())
    return LeafSizes(count, total, sum(count_flops(skeleton, Sample(_TEXT, _BOXES)).forward.values()))
