"""The interfaces of a system's parts. A system is a table of parts and one ``see``.

Shapes: N canvases, S side of a canvas in pixels, P tokens of a canvas, C channels, n_i boxes of canvas i, D hidden
size of the LLM.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mg_llava.batch import Layout
from mg_llava.models.weights.stored import TensorMap

PartRole = Literal["encoder", "connector", "llm"]


class Part(NamedTuple):
    """One part of a system. The table of a system's parts is the only list of them."""

    key: str
    """Attribute of the system, and first part of the names of its tensors in checkpoints, such as ``fuse_module``."""
    config: str
    """Argument of the system and key of its config, such as ``fusion``."""
    role: PartRole
    """Encoders are frozen unless a stage trains them; connectors and the LLM are trained as the stage says."""


class Seen(NamedTuple):
    """Outputs of an encoder for N canvases."""

    tokens: Tensor | None = None
    """``(N, P, C)``, row-major; None for an encoder that gives maps alone."""
    maps: Sequence[Tensor] = ()
    """For each stage ``(N, C_s, S / stride_s, S / stride_s)``, finest first."""
    detected: "Detected | None" = None
    """Of a detector."""


class Detected(NamedTuple):
    """The K best objects that a detector found in each of N canvases, best first."""

    states: Tensor
    """``(N, K, C_o)``, last states of the decoder's queries."""
    boxes: Tensor
    """``(N, K, 4)`` cxcywh as shares of the canvas."""
    scores: Tensor
    """``(N, K)``, probability of the likeliest class."""
    logits: Tensor
    """``(N, K, classes)``, of the detector's own classes; with one more for no object where it has one."""


def class_scores(logits: Tensor, has_rest: bool) -> Tensor:
    """Probabilities ``(..., classes)`` of a detector's classes from its logits; with a rest the last is no class."""
    return logits.softmax(-1)[..., :-1] if has_rest else logits.sigmoid()


class Looked(NamedTuple):
    """Outputs of all encoders for N canvases, and what is read of their boxes without parameters."""

    seen: Mapping[str, Seen]
    """By key of the encoder's part."""
    pooled: Tensor | None = None
    """``(sum n_i, C_b)`` float32, canvas by canvas; None for a system without objects."""
    boxes: Sequence[Tensor] = ()
    """N tensors ``(n_i, 4)`` xyxy, canvas pixels, of which these are; for systems that read places too."""


@dataclass(frozen=True)
class Spec:
    """An encoder without its weights: sizes, and all that is needed to build it again, as plain values for JSON."""

    type: str
    """Registered name of the encoder's class."""
    image_size: int
    """Side of its view in pixels."""
    mean: tuple[float, ...]
    """Per-channel mean for normalization."""
    std: tuple[float, ...]
    """Per-channel standard deviation for normalization."""
    tokens: int = 0
    """P, tokens of a canvas; 0 for an encoder that gives maps alone."""
    channels: int = 0
    """C, channels of a token."""
    stage_channels: tuple[int, ...] = ()
    """Channels of each stage, finest first."""
    stage_strides: tuple[int, ...] = ()
    """Pixels per cell of each stage."""
    objects: int = 0
    """K, objects of a canvas; 0 for an encoder that detects none."""
    object_channels: int = 0
    """C_o, channels of the state of an object."""
    classes: tuple[str, ...] = ()
    """Names of a detector's classes, in the order of its logits."""
    has_rest: bool = False
    """Whether a further logit, the last, is that of no object; scores are of a softmax then, else of sigmoids."""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that the class's ``from_spec`` needs."""
    source: str = field(default="", compare=False)
    """Where the sizes were found, for reports."""

    @property
    def grid(self) -> int:
        """Side of the square grid of tokens or, without tokens, of the last stage.

        Raises:
            ValueError: The tokens form no square.
        """
        return token_grid(self.tokens) if self.tokens else self.image_size // self.stage_strides[-1]


def token_grid(tokens: int) -> int:
    """Side of the square grid that holds ``tokens`` tokens.

    Raises:
        ValueError: If ``tokens`` is not a square number.
    """
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(
            f"{tokens} low-resolution tokens do not form a square grid; use an encoder whose image size is a multiple "
            "of its patch size, with the class token dropped"
        )
    return side


class Encoder(nn.Module):
    """A vision encoder that takes the canvas and makes its own view of it.

    A class of an encoder describes itself: systems, planner, exporters, converter and profiling ask ``describe``,
    ``from_spec`` and ``map_weights`` and nothing else. :class:`mg_llava.models.encoders.base.VisionEncoder` has all
    but the network.
    """

    spec: Spec

    def forward(self, canvas: Tensor) -> Seen:
        """See N canvases, ``(N, 3, S, S)`` uint8; floating ones are taken as normalized."""
        raise NotImplementedError

    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> Spec:
        """Sizes of the encoder that a config would build, without its weights.

        Raises:
            FileNotFoundError: Neither its folder nor published sizes are here.
            ValueError: Its files are damaged or of another kind.
        """
        raise NotImplementedError

    @classmethod
    def from_spec(cls, spec: Spec, dtype: str | torch.dtype = "auto") -> "Encoder":
        """The encoder with weights that are still to come, or on the meta device."""
        raise NotImplementedError

    @classmethod
    def map_weights(cls, config: Mapping[str, Any]) -> TensorMap:
        """Its tensors by their names in the module, unread.

        Raises:
            FileNotFoundError: The weights are not here.
            ValueError: They are damaged or of another model.
        """
        raise NotImplementedError


class Fusion(nn.Module):
    """Merges what a high-resolution encoder sees into low-resolution tokens."""

    out_channels: int
    reads: Literal["last", "all"] = "last"
    """The maps that it reads: that of the last stage, or those of all stages. Others are not kept for it; its
    ``high_channels`` are those of all that it reads."""

    @classmethod
    def conflicts(cls, low: Spec, high: Spec, settings: Mapping[str, Any]) -> list[str]:
        """Reasons why a fusion with these settings cannot merge these encoders, each with the fix."""
        return []

    def out_tokens(self, tokens: int) -> int:
        """Tokens of a canvas after the fusion."""
        return tokens

    def forward(self, low: Tensor, high: Seen) -> Tensor:
        """``(N, P, C)`` to ``(N, out_tokens(P), out_channels)``."""
        raise NotImplementedError


class FramePooler(nn.Module):
    """Makes fewer visual tokens of a frame of a video, or of an object image."""

    @classmethod
    def conflicts(cls, tokens: int, settings: Mapping[str, Any]) -> list[str]:
        """Reasons why a pooler with these settings cannot read so many tokens, each with the fix."""
        return []

    def out_tokens(self, tokens: int) -> int:
        """Tokens that are left."""
        raise NotImplementedError

    def forward(self, tokens: Tensor) -> Tensor:
        """``(P, D)`` to ``(out_tokens(P), D)``."""
        raise NotImplementedError


class ObjectReader(nn.Module):
    """One token per box: pooling without parameters, then a projection.

    Its constructor takes ``stage_channels`` and ``out_channels``, which is None where a merger takes the boxes away.
    """

    in_channels: int
    """C_b, channels of a pooled box."""

    @property
    def pooling(self) -> dict[str, Any]:
        """Settings that the pooled features depend on, as plain values."""
        return {}

    def pool(self, seen: Seen, boxes: Sequence[Tensor], size: int) -> Tensor:
        """Features of all boxes.

        Args:
            seen: Outputs of the encoder that objects are read from.
            boxes: N tensors ``(n_i, 4)`` xyxy, canvas pixels.
            size: S.

        Returns:
            ``(sum n_i, in_channels)`` float32.
        """
        raise NotImplementedError

    def project(self, pooled: Tensor) -> Tensor:
        """``(n, in_channels)`` to ``(n, D)``."""
        raise NotImplementedError


class Merger(nn.Module):
    """Lets the visual tokens and the boxes of a canvas read each other, before both are projected.

    Its constructor may ask for ``low_channels``, ``visual_channels`` (after the fusion) and ``object_channels``.
    """

    keeps_objects: bool = True
    """Whether the LLM gets tokens of boxes; nothing is built to project them where it gets none."""

    def forward(
        self, low: Tensor, visual: Tensor, objects: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | Sequence[Tensor]]:
        """Merge N canvases.

        Args:
            low: ``(N, P, C_l)``, before the fusion.
            visual: ``(N, P', C)``, after it.
            objects: N tensors ``(n_i, C_b)``, of the dtype of the tokens.

        Returns:
            The visual tokens in the same shape; and the boxes, canvas by canvas, in one tensor ``(sum n_i, C_b)`` or
            in N, empty where ``keeps_objects`` is false. N do for all but ZeRO-3: DeepSpeed hangs a backward hook on
            each tensor that a module returns, and would gather in another order where there are more pictures.
        """
        raise NotImplementedError


class Segment(NamedTuple):
    """Consecutive tokens of a placeholder."""

    kind: Literal["visual", "object", "query", "crop", "prompt", "source"]
    tokens: Tensor
    """``(m, D)``; of a ``prompt`` not in the sequence, but for :meth:`System.condition`, and of a ``source`` for the
    losses of a system without LLM."""
    about: Any = None
    """What the system itself reads again, such as the objects that a prompt was made of."""

    @property
    def length(self) -> int:
        """Positions that it takes in the sequence."""
        return 0 if self.kind in ("prompt", "source") else len(self.tokens)


Seeing = list[list[Segment]]
"""For each placeholder, in reading order, its segments in order."""


class LLMInputs(NamedTuple):
    """Inputs of an LLM in training, with the targets of its answers."""

    arguments: dict[str, Any]
    """Keyword arguments of its forward."""
    layout: Layout
    """Of its rows, with labels and the positions before them."""
    memo: dict[str, Tensor]
    """What a loss computed of it, for those that come after."""


class Loss:
    """Something that a system learns. Values whose names begin with ``loss`` are summed; others are logged alone."""

    def check(self, llm: Any) -> None:
        """Refuse an LLM that it does not go together with.

        Raises:
            ValueError: They do not go together.
            RuntimeError: Something is missing on this machine.
        """

    def count(self, batch: Mapping[str, Any]) -> int:
        """How many items of a batch on the CPU its mean is over, found without its tensors' values; rows by default.

        By it micro-batches of one step are weighed against each other.
        """
        return len(batch["input_ids"])

    def __call__(
        self, system: Any, batch: Mapping[str, Any], seeing: Seeing, read: LLMInputs | None
    ) -> dict[str, Tensor]:
        """Scalars by name.

        Args:
            system: The :class:`mg_llava.models.system.System`.
            batch: A :class:`mg_llava.batch.Batch`.
            seeing: The segments of each placeholder.
            read: What the LLM reads, an :class:`LLMInputs`; None for a system without LLM.
        """
        raise NotImplementedError
