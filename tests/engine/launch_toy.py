"""A tiny model and data set that look like the real ones to loops, hooks and DeepSpeed; used by launch_config.py."""

import random

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import Dataset

from mg_llava.batch import TokenCount
from mg_llava.models.interfaces import Part

WIDTH = 8


class ToyModel(BaseModel):
    """Gated sum of two branches of the same input; ``fuse_module`` starts at zero and the encoder is frozen."""

    parts = (
        Part("visual_encoder", "low_res_encoder", "encoder"),
        Part("fuse_module", "fusion", "connector"),
        Part("projector", "projector", "connector"),
        Part("llm", "llm", "llm"),
    )
    token_count = TokenCount(0)

    def __init__(self, dropout=0.0, dead=False, trains_llm=True):
        super().__init__()
        self.visual_encoder = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.fuse_module = nn.Linear(WIDTH, WIDTH)
        nn.init.zeros_(self.fuse_module.weight)
        nn.init.zeros_(self.fuse_module.bias)
        self.projector = nn.Linear(WIDTH, WIDTH)
        self.llm = nn.Linear(WIDTH, 1).requires_grad_(trains_llm)
        self.register_buffer("scale", torch.ones(1))
        self.dropout = dropout
        self.dead = dead
        self.monitor = {}

    def named_parts(self):
        """As a system has it."""
        return ((part, getattr(self, part.key)) for part in self.parts)

    def forward(self, data, data_samples=None, mode="loss"):
        """``data['canvas']``, or ``data['text']`` where there are no pictures, is (B, WIDTH)."""
        x = _rows(data).to(self.projector.weight.dtype)
        x = self.visual_encoder(x) * self.scale
        high = self.fuse_module(x) * (0.0 if self.dead else 1.0)
        visual = nn.functional.dropout(torch.tanh(self.projector(x) + high), self.dropout, self.training)
        if "canvas" in data:
            self.monitor["gate"] = high.detach().float().abs().mean()
            self.monitor["low_norm"] = x.detach().float().norm(dim=-1).mean()
        return {"loss": ((self.llm(visual).float() - 1) ** 2).mean()}

    def generate(self, data, max_new_tokens):
        """One id per row: the rounded output, which a change of the weights changes."""
        value = self.llm(torch.tanh(self.projector(_rows(data).to(self.projector.weight.dtype))))
        return [torch.tensor([int(v * 1000)] * max_new_tokens) for v in value]


def _rows(data):
    return data["canvas"] if "canvas" in data else data["text"]


class ToyData(Dataset):
    """Rows of noise, the same for every process."""

    def __init__(self, length=12):
        self.x = torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(0))
        self.modality_length = [5 + index % 5 for index in range(length)]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index]

    def report(self):
        """As a data set that skips something reports it."""
        return "2 pictures could not be read"


class DrawnData(ToyData):
    """Rows that are drawn anew in every epoch, as boxes are; known to the workers through shared memory."""

    def __init__(self, length=12):
        super().__init__(length)
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch):
        """Draw anew."""
        self.epoch.fill_(epoch)

    def __getitem__(self, index):
        return super().__getitem__(index) + float(self.epoch)


def toy_collate(rows, kind="canvas"):
    """Rows to a batch with the keys hooks read; each is a picture and three ids, or ``text`` alone."""
    x = torch.stack(rows)
    mask = torch.ones(len(rows), 3, dtype=torch.bool)
    return {"data": {kind: x, "input_ids": mask.long(), "attention_mask": mask}, "data_samples": None}


def scramble_random_state():
    """Bring all generators into a state no run reaches by itself."""
    random.seed(99)
    torch.manual_seed(99)


class Killed(Exception):
    """The toy run was killed."""


class KillHook(Hook):
    """Ends training in the middle of an iteration, as a killed process does."""

    priority = "VERY_HIGH"

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 3:
            raise Killed
