"""A vision encoder but for its network: the view, freezing, and loading what ``map_weights`` finds.

An encoder that no stage trains runs without autograd, in eval mode whatever ``train()`` says, in its own dtype.

Shapes: N canvases, S side of the canvas, s side of the view, both in pixels.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mg_llava.models.encoders.views import normalize, resample
from mg_llava.models.interfaces import Encoder, Seen, Spec
from mg_llava.models.weights.folders import find_folder, load_mapped
from mg_llava.models.weights.loading import on_meta, require_folder, resolve_dtype


class VisionEncoder(Encoder):
    """Base of the encoders here; a class of one writes ``describe``, ``map_weights``, ``build`` and ``see``.

    On the meta device (``with torch.device("meta")``) no weights are read.

    Args:
        config: What ``describe`` and ``map_weights`` read: the arguments of the class.
        dtype: Dtype of weights and computation, e.g. ``"bfloat16"``; ``"auto"`` is bfloat16 on CUDA, else float32.
    """

    wanted: ClassVar[str | None] = None
    """What a folder at ``path`` should hold, for messages; None for weights that are no folder of transformers."""

    def __init__(self, config: Mapping[str, Any], dtype: str | torch.dtype) -> None:
        super().__init__()
        if on_meta():
            self._set_up(self.describe(config), dtype)
            return
        config = self.fetch(config)
        tensors = self.map_weights(config)
        self._set_up(self.describe(config), dtype)
        load_mapped(self, tensors, str(config.get("path") or config.get("name")))

    @classmethod
    def from_spec(cls, spec: Spec, dtype: str | torch.dtype = "auto") -> "VisionEncoder":
        """See :meth:`Encoder.from_spec`."""
        encoder = cls.__new__(cls)
        Encoder.__init__(encoder)
        encoder._set_up(spec, dtype)
        return encoder

    def _set_up(self, spec: Spec, dtype: str | torch.dtype) -> None:
        self.spec = spec
        self.is_trained = False
        self.build(spec)
        self.requires_grad_(False)
        self.to(resolve_dtype(dtype))
        self.settle()
        self.eval()

    @classmethod
    def fetch(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The config with local paths, for weights that a hub has.

        Raises:
            FileNotFoundError: Its folder has no ``config.json``.
        """
        if cls.wanted is None:
            return config
        require_folder(config["path"], "config.json", cls.wanted)
        return {**config, "path": str(find_folder(config["path"]))}

    def build(self, spec: Spec) -> None:
        """Make the network's modules as attributes."""
        raise NotImplementedError

    def see(self, pixels: Tensor) -> Seen:
        """Run the network on a view ``(N, 3, s, s)``, normalized, in the encoder's dtype."""
        raise NotImplementedError

    def settle(self) -> None:
        """Arrange weights in memory as the computation wants them."""

    def train(self, mode: bool = True) -> "VisionEncoder":
        """Stay in eval mode while frozen: stochastic depth would make the loss of the same batch differ."""
        return super().train(mode and self.is_trained)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, to which views are cast."""
        return next(self.parameters()).dtype

    def view(self, canvas: Tensor) -> Tensor:
        """``(N, 3, S, S)`` uint8 canvas to ``(N, 3, s, s)`` float32, normalized and resampled."""
        return resample(normalize(canvas, self.spec.mean, self.spec.std), self.spec.image_size)

    def forward(self, canvas: Tensor) -> Seen:
        """See :meth:`Encoder.forward`."""
        with torch.set_grad_enabled(self.is_trained and torch.is_grad_enabled()):
            return self.see(self.view(canvas).to(self.dtype))
