"""The published model once more, written densely from its description, to hold the package against.

Nothing of ``mg_llava.models`` is used. Encoders and LLM come from their folders through transformers and timm, the
trained parts from a checkpoint file under the published key names; boxes are pooled by upsampling all stages to the
finest, RoIAlign with 56 x 56 bins and a mean; the sequence is merged token by token, one row for each sample.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torchvision.ops import roi_align
from transformers import AutoModelForCausalLM, CLIPVisionModel

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
PICTURE = -200


class Oracle:
    """Float32, CPU, every step spelled out.

    Args:
        paths: Folders ``clip``, ``convnext`` and ``llm``.
        checkpoint: File with ``state_dict``; the parts that it has replace those of the folders.
    """

    def __init__(self, paths: dict[str, str], checkpoint: str) -> None:
        self.clip = CLIPVisionModel.from_pretrained(paths["clip"]).eval().requires_grad_(False)
        self.convnext = self._read_convnext(Path(paths["convnext"]))
        self.llm = AutoModelForCausalLM.from_pretrained(paths["llm"], attn_implementation="eager").eval()
        state = torch.load(checkpoint, weights_only=True)["state_dict"]
        llm_state = {key.removeprefix("llm."): value for key, value in state.items() if key.startswith("llm.")}
        if llm_state:
            self.llm.load_state_dict(llm_state, strict=True)
        self.p = {key: v.clone().requires_grad_(True) for key, v in state.items() if not key.startswith("llm.")}

    @staticmethod
    def _read_convnext(folder: Path) -> torch.nn.Module:
        vision = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["vision_cfg"]
        trunk = timm.create_model(vision["timm_model_name"], num_classes=0, **vision["timm_model_kwargs"])
        state = load_file(folder / "open_clip_model.safetensors")
        prefix = "visual.trunk."
        trunk.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        return trunk.eval().requires_grad_(False)

    # -- one picture ------------------------------------------------------------------------------------------------

    def picture_tokens(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """``(P, D)`` visual tokens and ``(n, D)`` box tokens of one picture ``(3, S, S)`` uint8."""
        side = image.shape[-1]
        high_view = ((image.float() / 255 - MEAN) / STD)[None]
        low_side = self.clip.config.image_size
        low_view = F.interpolate(high_view, size=(low_side, low_side), mode="bilinear", align_corners=False)
        low = self.clip(low_view, output_hidden_states=True).hidden_states[-2][0, 1:]
        hidden = self.convnext.stem(high_view)
        stages = []
        for stage in self.convnext.stages:
            hidden = stage(hidden)
            stages.append(hidden)
        visual = self._mlp("projector", self._conv_gate(low, stages[-1][0]))
        return visual, self._mlp("bbox_projector", self._box_features(stages, boxes, side))

    def _conv_gate(self, low: Tensor, high: Tensor) -> Tensor:
        """``(P, C_l)`` tokens and ``(C_h, h, w)`` map to ``(P, C_l)``."""
        p = {key.removeprefix("fuse_module."): v for key, v in self.p.items() if key.startswith("fuse_module.")}
        tokens, channels = low.shape
        side = int(tokens**0.5)
        slow = F.gelu(F.conv2d(high[None], p["slow_conv.weight"], p["slow_conv.bias"]))
        slow = F.conv2d(slow, p["slow_proj.weight"], p["slow_proj.bias"])[0].reshape(channels, tokens).T
        grid = low.T.reshape(1, channels, side, side)
        fast = F.gelu(F.conv2d(grid, p["fast_conv.weight"], p["fast_conv.bias"], padding=3, groups=channels))
        fast = F.conv2d(fast, p["fast_proj.weight"], p["fast_proj.bias"])[0].reshape(channels, tokens).T
        fast = low + fast
        mean = torch.cat([fast, slow], dim=1).mean(dim=0)
        gate = F.gelu(mean @ p["gate.0.weight"].T + p["gate.0.bias"]) @ p["gate.2.weight"].T + p["gate.2.bias"]
        return fast + torch.tanh(gate) * slow

    def _box_features(self, stages: Sequence[Tensor], boxes: Tensor, side: int) -> Tensor:
        finest = stages[0].shape[-1]
        maps = [F.interpolate(stage, size=(finest, finest), mode="bilinear", align_corners=False) for stage in stages]
        bins = roi_align(torch.cat(maps, dim=1), [boxes], (56, 56), finest / side, -1, aligned=False)
        return bins.mean(dim=(2, 3))

    def _mlp(self, part: str, tokens: Tensor) -> Tensor:
        hidden = F.gelu(tokens @ self.p[f"{part}.model.0.weight"].T + self.p[f"{part}.model.0.bias"])
        return hidden @ self.p[f"{part}.model.2.weight"].T + self.p[f"{part}.model.2.bias"]

    # -- a batch ----------------------------------------------------------------------------------------------------

    def merge(self, samples: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings ``(B, L, D)``, labels, mask and positions ``(B, L)``, padded on the right."""
        rows = [self.merge_one(sample) for sample in samples]
        longest = max(len(labels) for _, labels in rows)
        width = rows[0][0].shape[1]
        embeddings, labels, mask, positions = [], [], [], []
        for row, row_labels in rows:
            padding = longest - len(row)
            embeddings.append(torch.cat([row, torch.zeros(padding, width)]))
            labels.append(torch.tensor(row_labels + [-100] * padding))
            mask.append(torch.tensor([1] * len(row) + [0] * padding))
            positions.append(torch.tensor([*range(len(row))] + [0] * padding))
        return torch.stack(embeddings), torch.stack(labels), torch.stack(mask), torch.stack(positions)

    def merge_one(self, sample: dict[str, Any]) -> tuple[Tensor, list[int]]:
        """Embeddings ``(l, D)`` and labels of one sample."""
        row: list[Tensor] = []
        labels: list[int] = []
        picture = 0
        for token, label in zip(sample["input_ids"].tolist(), sample["labels"].tolist(), strict=True):
            if token != PICTURE:
                row.append(self.llm.get_input_embeddings().weight[token])
                labels.append(label)
                continue
            visual, boxes = self.picture_tokens(sample["images"][picture], sample["boxes"][picture])
            row += [*visual, *boxes]
            labels += [-100] * (len(visual) + len(boxes))
            picture += 1
        return torch.stack(row), labels

    def forward(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Embeddings, logits and Hugging Face's own loss."""
        embeddings, labels, mask, positions = self.merge(samples)
        output = self.llm(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, labels=labels)
        return {
            "embeddings": embeddings,
            "labels": labels,
            "mask": mask,
            "positions": positions,
            "logits": output.logits,
            "loss": output.loss,
        }

    def gradient_norms(self, samples: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Norm of the loss's gradient for each part."""
        for parameter in (*self.p.values(), *self.llm.parameters()):
            parameter.grad = None
        self.forward(samples)["loss"].backward()
        squares: dict[str, float] = {}
        for key, parameter in (*self.p.items(), *((f"llm.{k}", v) for k, v in self.llm.named_parameters())):
            part = key.split(".", 1)[0]
            squares[part] = squares.get(part, 0.0) + parameter.grad.double().square().sum().item()
        return {part: square**0.5 for part, square in squares.items()}

    @torch.no_grad()
    def generate(self, sample: dict[str, Any], count: int, end: int) -> list[int]:
        """Greedy ids of one sample, without cache: the whole sequence is run again for each of them."""
        row, _ = self.merge_one(sample)
        ids: list[int] = []
        for _ in range(count):
            logits = self.llm(inputs_embeds=row[None]).logits
            token = int(logits[0, -1].argmax())
            if token == end:
                break
            ids.append(token)
            row = torch.cat([row, self.llm.get_input_embeddings().weight[token][None]])
        return ids
