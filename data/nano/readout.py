"""What the encoders of the miniature are taught and measured by: targets per cell, box features, linear readouts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scenes
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

SHAPE, EMPTY = 10, 11
CONTENTS = 12
"""Classes of a cell: the ten digits, a distractor, nothing."""
LEVELS = len(scenes.LEVELS)
LOW_SIZE = 56
MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)


@dataclass
class Batch:
    """Pictures as tensors, with what is to be read from them.

    Attributes:
        canvas: (B, 3, S, S), normalized.
        content: (B, 64) class of every cell.
        level: (B, 64) size level, -100 where a cell is empty.
        boxes: per picture (n, 4) xyxy in canvas pixels.
        box_content: (sum of n,) class of every box.
        box_level: (sum of n,) size level of every box.
    """

    canvas: Tensor
    content: Tensor
    level: Tensor
    boxes: list[Tensor]
    box_content: Tensor
    box_level: Tensor

    @property
    def low(self) -> Tensor:
        """The low-resolution view, (B, 3, 56, 56): bilinear without antialias, as the model makes it."""
        return F.interpolate(self.canvas, (LOW_SIZE, LOW_SIZE), mode="bilinear", align_corners=False)


def make_batch(pictures: list[scenes.Scene], jitter: float = 0.0, rng: np.random.Generator | None = None) -> Batch:
    """Turn drawn scenes into tensors; boxes are moved by up to ``jitter`` pixels per side and rounded."""
    canvases, boxes, box_content, box_level = [], [], [], []
    content = torch.full((len(pictures), scenes.GRID**2), EMPTY)
    level = torch.full((len(pictures), scenes.GRID**2), -100)
    for index, scene in enumerate(pictures):
        pixels, box = scenes.to_canvas(scene)
        if jitter and rng is not None:
            box = box + rng.uniform(-jitter, jitter, box.shape).astype(np.float32)
        canvases.append(torch.from_numpy(pixels.copy()))
        boxes.append(torch.from_numpy(np.rint(box)))
        for mark in scene.marks:
            cell = mark.row * scenes.GRID + mark.column
            content[index, cell] = mark.digit if mark.digit >= 0 else SHAPE
            level[index, cell] = mark.level
            box_content.append(mark.digit if mark.digit >= 0 else SHAPE)
            box_level.append(mark.level)
    canvas = (torch.stack(canvases).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
    return Batch(canvas, content, level, boxes, torch.tensor(box_content), torch.tensor(box_level))


def batches(seed: int, split: scenes.Split, count: int, size: int, dense: float) -> Iterator[Batch]:
    """``count`` batches of ``size`` pictures, a share ``dense`` of them with a mark in most cells."""
    rng = np.random.default_rng(seed)
    scenes.digit_tiles(split)
    for _ in range(count):
        draw = [scenes.draw_dense_scene if rng.random() < dense else scenes.draw_scene for _ in range(size)]
        yield make_batch([function(rng, split) for function in draw], jitter=1.0, rng=rng)


def box_features(stages: list[Tensor], boxes: list[Tensor]) -> Tensor:
    """Mean RoIAlign of every box over every stage, concatenated: (sum of n, sum of channels)."""
    parts = []
    for stage in stages:
        scale = stage.shape[-1] / scenes.CANVAS
        pooled = roi_align(stage, boxes, output_size=4, spatial_scale=scale, sampling_ratio=2, aligned=False)
        parts.append(pooled.mean(dim=(2, 3)))
    return torch.cat(parts, dim=1)


class CellReadout(nn.Module):
    """Linear readout of cell features (B, 64, C): content and size level; with ``place`` row and column too."""

    def __init__(self, channels: int, place: bool = False):
        super().__init__()
        self.content = nn.Linear(channels, CONTENTS)
        self.level = nn.Linear(channels, LEVELS)
        self.place = nn.Linear(channels, 2 * scenes.GRID) if place else None

    def loss(self, features: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy; empty cells weigh less, because most cells are empty."""
        weight = torch.ones(CONTENTS)
        weight[EMPTY] = 0.3
        loss = F.cross_entropy(self.content(features).flatten(0, 1), batch.content.flatten(), weight)
        loss = loss + 0.3 * F.cross_entropy(self.level(features).flatten(0, 1), batch.level.flatten())
        if self.place is not None:
            cells = torch.arange(scenes.GRID**2).repeat(len(features))
            row, column = self.place(features).flatten(0, 1).chunk(2, dim=-1)
            loss = loss + 0.1 * F.cross_entropy(row, cells // scenes.GRID)
            loss = loss + 0.1 * F.cross_entropy(column, cells % scenes.GRID)
        return loss


class BoxReadout(nn.Module):
    """Readout of box features (n, C) through one hidden layer: content and size level."""

    def __init__(self, channels: int, hidden: int = 128):
        super().__init__()
        self.hidden = nn.Linear(channels, hidden)
        self.content = nn.Linear(hidden, CONTENTS)
        self.level = nn.Linear(hidden, LEVELS)

    def loss(self, features: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of content and level."""
        hidden = F.gelu(self.hidden(features))
        content = F.cross_entropy(self.content(hidden), batch.box_content)
        return content + 0.3 * F.cross_entropy(self.level(hidden), batch.box_level)
