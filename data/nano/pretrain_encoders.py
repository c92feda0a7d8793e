"""Pretrain the two encoders of the miniature on the same pictures and the same task, and write them in real formats.

Both learn to say, for every cell of the 8 x 8 grid, which digit it holds (or a distractor, or nothing) and how large
it is, from the features that the model uses later: the CLIP hidden state of layer -2, the last ConvNeXt stage, and
for boxes the mean RoIAlign over all ConvNeXt stages. Digits and backgrounds of the held-out split are never seen.

Examples:
    python data/nano/pretrain_encoders.py                         # both, into data/nano/clip and data/nano/convnext
    python data/nano/pretrain_encoders.py --encoder clip --pictures 2000 --out /tmp/try
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import readout
import scenes
import timm
import torch
from optimizer import Optimizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

HERE = Path(__file__).resolve().parent
CONVNEXT = "convnext_atto"
CONVNEXT_KWARGS = {"depths": [1, 1, 3, 1], "dims": [24, 48, 128, 192], "ls_init_value": None}
EMBED_DIM = 64


class LowPath(nn.Module):
    """A small CLIP vision model with a linear readout of the hidden state before its last layer."""

    def __init__(self) -> None:
        super().__init__()
        config = CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=readout.LOW_SIZE,
            patch_size=readout.LOW_SIZE // scenes.GRID,
            projection_dim=EMBED_DIM,
        )
        self.encoder = CLIPVisionModel(config)
        self.cells = readout.CellReadout(config.hidden_size, place=True)

    def matrices(self) -> list[nn.Parameter]:
        """Weights of the linear layers inside the encoder."""
        layers = self.encoder.vision_model.encoder.layers
        return [parameter for parameter in layers.parameters() if parameter.ndim == 2]

    def cell_features(self, batch: readout.Batch) -> Tensor:
        """(B, 64, C)."""
        return self.encoder(batch.low, output_hidden_states=True).hidden_states[-2][:, 1:]

    def output_layers(self) -> tuple[list[Tensor], Tensor]:
        """What the scale of the cell features is proportional to, and the bias that is added to them last."""
        model = self.encoder.vision_model
        scaled = [model.pre_layrnorm.weight, model.pre_layrnorm.bias]
        for layer in model.encoder.layers:
            for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
                scaled += [linear.weight, linear.bias]
        return scaled, model.encoder.layers[-2].mlp.fc2.bias

    def loss(self, batch: readout.Batch) -> Tensor:
        """Loss of the cell task."""
        return self.cells.loss(self.cell_features(batch), batch)


class HighPath(nn.Module):
    """A small ConvNeXt with a linear readout of its last stage and a readout of pooled boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = timm.create_model(CONVNEXT, pretrained=False, num_classes=0, **CONVNEXT_KWARGS)
        for name, parameter in self.encoder.named_parameters():
            if parameter.ndim > 1:
                gain = 0.5 if "fc2" in name else 1.0
                nn.init.trunc_normal_(parameter, std=gain * parameter[0].numel() ** -0.5)
        dims = CONVNEXT_KWARGS["dims"]
        self.cells = readout.CellReadout(dims[-1])
        self.boxes = readout.BoxReadout(sum(dims))

    def matrices(self) -> list[nn.Parameter]:
        """Weights inside the stages, but for the depthwise convolutions."""
        named = self.encoder.stages.named_parameters()
        return [parameter for name, parameter in named if parameter.ndim > 1 and "conv_dw" not in name]

    def stages(self, batch: readout.Batch) -> list[Tensor]:
        """Stage maps at strides 4, 8, 16, 32."""
        maps, x = [], self.encoder.stem(batch.canvas)
        for stage in self.encoder.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def cell_features(self, batch: readout.Batch) -> Tensor:
        """(B, 64, C)."""
        return self.stages(batch)[-1].flatten(2).transpose(1, 2)

    def output_layers(self) -> tuple[list[Tensor], Tensor]:
        """What the scale of the cell features is proportional to, and the bias that is added to them last."""
        stage = self.encoder.stages[-1]
        scaled = [stage.downsample[1].weight, stage.downsample[1].bias]
        for block in stage.blocks:
            scaled += [block.conv_dw.bias, block.mlp.fc2.weight, block.mlp.fc2.bias]
        return scaled, stage.blocks[-1].mlp.fc2.bias

    def loss(self, batch: readout.Batch) -> Tensor:
        """Loss of the cell task and of the box task."""
        stages = self.stages(batch)
        loss = self.cells.loss(stages[-1].flatten(2).transpose(1, 2), batch)
        return loss + self.boxes.loss(readout.box_features(stages, batch.boxes), batch)


def train(path: LowPath | HighPath, data: Iterator[readout.Batch], steps: int, lr: float, name: str) -> None:
    """Train one path on all batches."""
    optimizer = Optimizer(path, path.matrices(), steps, lr, matrix_lr=0.02)
    start, average = time.time(), 0.0
    for step, batch in enumerate(data):
        loss = path.loss(batch)
        optimizer.step(loss)
        average += (loss.item() - average) * max(0.01, 1 / (step + 1))
        if step % 200 == 0 or step == steps - 1:
            print(f"{name}: step {step + 1}/{steps}  loss {average:.3f}  {time.time() - start:.0f} s", flush=True)


@torch.no_grad()
def standardize(path: LowPath | HighPath, seed: int) -> None:
    """Give the cell features mean zero per channel and unit variance over all, without changing what they say.

    Layer normalization inside the encoder hides the scale of the residual stream, so scaling every layer that writes
    to it scales the features. A fusion gate that is fed the mean of raw features saturates in its first steps.
    """
    scaled, last_bias = path.output_layers()
    features = torch.cat([path.cell_features(batch) for batch in readout.batches(seed, "train", 16, 8, dense=0.0)])
    deviation = (features - features.mean(dim=(0, 1))).pow(2).mean().sqrt()
    for tensor in scaled:
        tensor.div_(deviation)
    last_bias.sub_(features.mean(dim=(0, 1)) / deviation)


def half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half-precision copies for storage; every loader copies them into float32 modules."""
    return {
        key: value.detach().half().contiguous() if value.is_floating_point() else value for key, value in state.items()
    }


def save_clip(path: LowPath, folder: Path) -> None:
    """Write a Hugging Face CLIPVisionModel folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path.encoder.config.architectures = ["CLIPVisionModel"]
    path.encoder.config.torch_dtype = "float32"
    path.encoder.config.save_pretrained(folder)
    state = {key: value for key, value in path.encoder.state_dict().items() if "position_ids" not in key}
    save_file(half(state), folder / "model.safetensors", metadata={"format": "pt"})
    size = readout.LOW_SIZE
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(folder)


def save_convnext(path: HighPath, folder: Path) -> None:
    """Write an open_clip folder; like a real one it also holds a projection head that the model does not use."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"visual.trunk.{key}": value for key, value in path.encoder.state_dict().items()}
    width = CONVNEXT_KWARGS["dims"][-1]
    state["visual.head.proj.weight"] = torch.eye(EMBED_DIM, width)
    save_file(half(state), folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    vision = {
        "timm_model_name": CONVNEXT,
        "timm_model_kwargs": CONVNEXT_KWARGS,
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": scenes.CANVAS,
    }
    text = {"context_length": 77, "vocab_size": 49408, "width": EMBED_DIM, "heads": 4, "layers": 1}
    config = {
        "model_cfg": {"embed_dim": EMBED_DIM, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": readout.MEAN.flatten().tolist(), "std": readout.STD.flatten().tolist()},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_path(name: str, folder: Path) -> LowPath | HighPath:
    """The path of ``"clip"`` or ``"convnext"`` with the encoder below ``folder``; its readouts are not stored."""
    if name == "clip":
        low = LowPath()
        low.encoder = CLIPVisionModel.from_pretrained(folder / name)
        return low.eval()
    high, prefix = HighPath(), "visual.trunk."
    state = load_file(folder / name / "open_clip_model.safetensors")
    trunk = {key.removeprefix(prefix): value.float() for key, value in state.items() if key.startswith(prefix)}
    high.encoder.load_state_dict(trunk)
    return high.eval()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=("both", "clip", "convnext"), default="both")
    parser.add_argument("--pictures", type=int, default=8000, help="pictures per encoder (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--lr", type=float, default=3e-3, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=HERE, help="parent of clip/ and convnext/ (default: data/nano)")
    arguments = parser.parse_args()
    steps = arguments.pictures // arguments.batch_size
    for name, kind, save in (("clip", LowPath, save_clip), ("convnext", HighPath, save_convnext)):
        if arguments.encoder in ("both", name):
            torch.manual_seed(arguments.seed)
            path = kind()
            data = readout.batches(arguments.seed, "train", steps, arguments.batch_size, dense=0.75)
            train(path, data, steps, arguments.lr, name)
            standardize(path.eval(), arguments.seed + 1)
            save(path, arguments.out / name)


if __name__ == "__main__":
    main()
