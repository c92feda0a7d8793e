"""The published way of a training step, written from its description, to measure ours against.

What it does otherwise than this package: the frozen low-resolution encoder runs to its last layer, with autograd and
checkpointing; the high-resolution encoder computes channels-first; boxes are pooled from an upsampled and concatenated
map through RoIAlign; workers send both views in float32; the projector is checkpointed; rows are padded, and logits
are made and turned into float32 for all positions. Two of its habits are left out because they change the loss:
stochastic depth in the frozen encoder, and rounding of the bins before their mean in half precision.

Shapes: B rows, N pictures, S side of the canvas and s of the low-resolution view in pixels, C channels, n boxes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mg_llava.models.encoders.clip import CLIPEncoder
from mg_llava.models.encoders.convnext import OpenCLIPConvNeXtEncoder
from mg_llava.models.encoders.views import normalize, resample
from mg_llava.models.interfaces import Seen
from mg_llava.models.objects.roi_align import RoIAlignBoxProjector
from mg_llava.models.splice import layout_of, splice


def dense_box_features(stages: Sequence[Tensor], boxes: Sequence[Tensor], canvas_size: int, bins: int) -> list[Tensor]:
    """Mean of RoIAlign over the upsampled and concatenated stages, with all of it made.

    Args:
        stages: Maps ``(N, C_s, H_s, W_s)``, finest first.
        boxes: For each picture ``(n_i, 4)`` xyxy in canvas pixels.
        canvas_size: Side of the canvas in pixels.
        bins: Bins of RoIAlign along each axis.

    Returns:
        For each picture ``(n_i, sum C_s)`` float32.
    """
    from torchvision.ops import roi_align

    side = stages[0].shape[-1]
    upsampled = [
        F.interpolate(stage.float(), size=side, mode="bilinear", align_corners=False).to(stage.dtype)
        for stage in stages[1:]
    ]
    whole = torch.cat([stages[0], *upsampled], dim=1).float()  # (N, sum C_s, side, side)
    del upsampled
    features = []
    for picture, own in enumerate(boxes):
        rois = [own.to(device=whole.device, dtype=torch.float32)]
        aligned = roi_align(whole[picture : picture + 1], rois, bins, side / canvas_size, -1, aligned=False)
        features.append(aligned.mean(dim=(2, 3)))  # (n, sum C_s, bins, bins) -> (n, sum C_s)
    return features


class DenseBoxProjector(RoIAlignBoxProjector):
    """The box projector with dense pooling."""

    def pool(self, seen: Seen, boxes: Sequence[Tensor], size: int) -> Tensor:
        """As its base."""
        chosen = [seen.maps[index] for index in self.stages]
        with torch.autocast(chosen[0].device.type, enabled=False):
            return torch.cat(dense_box_features(chosen, boxes, size, self.bins))


class CheckpointedCLIP(CLIPEncoder):
    """The frozen low-resolution encoder as XTuner sets it up: inputs with gradients, each layer checkpointed.

    Made with ``layer=-1``: all layers run, and the hidden states before the last are taken.
    """

    def forward(self, canvas: Tensor) -> Seen:
        """As its base, with a graph."""
        return self.see(self.view(canvas).to(self.dtype))

    def see(self, pixels: Tensor) -> Seen:
        """As its base."""
        hidden = self.pre_norm(self.embeddings(pixels).requires_grad_())
        states = [hidden]  # all are kept, as with output_hidden_states
        for layer in self.encoder.layers:
            # ``layer`` gives a tuple, or the tensor alone in newer releases of transformers
            output = checkpoint(layer, states[-1], None, None, use_reentrant=True)
            states.append(output[0] if isinstance(output, tuple) else output)
        return Seen(states[-2][:, self.class_tokens :])


class ChannelsFirstConvNeXt(OpenCLIPConvNeXtEncoder):
    """The high-resolution encoder in torch's default memory layout."""

    def settle(self) -> None:
        """Leave the weights as they are."""

    def see(self, pixels: Tensor) -> Seen:
        """As its base."""
        hidden, maps = self.vision_stem(pixels.contiguous()), []
        for stage in self.vision_stages:
            hidden = stage(hidden)
            maps.append(hidden)
        return Seen(maps=maps)


def reference_batch(data: dict[str, Any], low_size: int) -> dict[str, Any]:
    """The batch as the published workers send it: in place of the 8-bit canvas a float32 view for each encoder.

    Args:
        data: A batch of :func:`mg_llava.data.collate`.
        low_size: Side s of the low-resolution view.

    Returns:
        The batch with ``pixel_values`` (N, 3, s, s) and ``pixel_values_aux``, N tensors (3, S, S), for ``canvas``.
    """
    rest = {name: value for name, value in data.items() if name != "canvas"}
    canvas = normalize(data["canvas"])
    return {**rest, "pixel_values": resample(canvas, low_size), "pixel_values_aux": list(canvas.unbind())}


class ReferenceStep(nn.Module):
    """The published forward pass over the parts of a model that was made with the encoders and projector above.

    Args:
        model: A :class:`mg_llava.models.MGLLaVA` with all parts.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.visual_encoder, self.visual_encoder_aux = model.visual_encoder, model.visual_encoder_aux
        self.fuse_module, self.projector, self.bbox_projector = (
            model.fuse_module,
            model.projector,
            model.bbox_projector,
        )
        self.llm = model.llm

    def forward(self, data: dict[str, Any]) -> Tensor:
        """Loss of a batch of :func:`reference_batch` that lies on the model's device."""
        dtype = next(self.projector.parameters()).dtype
        tokens = self.visual_encoder(data["pixel_values"]).tokens.to(dtype)
        canvas = torch.stack(data["pixel_values_aux"])  # (N, 3, S, S)
        seen = self.visual_encoder_aux(canvas)
        boxes = self.bbox_projector(seen, data["boxes"], canvas.shape[-1])
        fused = self.fuse_module(tokens, Seen(maps=[seen.maps[-1].to(dtype)]))
        visual = checkpoint(self.projector, fused, use_reentrant=True)
        text = self.llm.get_input_embeddings()(data["input_ids"].clamp(min=0))
        pieces = [list(pair) for pair in zip(visual, boxes.split([len(own) for own in data["boxes"]]), strict=True)]
        layout = layout_of(data, pieces)
        # No mask: by a slip of the published code all padding is attended to. Right-padded and causal, rows are the
        # same with it, and the attention takes its fastest path.
        logits = self.llm(inputs_embeds=splice(text, pieces, layout), use_cache=False).logits.float()
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), layout.labels[:, 1:].flatten())
