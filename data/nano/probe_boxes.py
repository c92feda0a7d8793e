"""Train the projector of boxes alone, through the frozen LLM, on captions of scenes whose poor map is given as text.

It shows when box tokens come to tell digits apart, and when they only grow in common: the loss of captions with and
without boxes, the norm of the tokens, and the norm of their mean.

Examples:
    python data/nano/probe_boxes.py
    python data/nano/probe_boxes.py --blind 100 --lr 1e-3 --features centered
    python data/nano/probe_boxes.py --blind 100 --token-norm 2
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path

import language
import numpy as np
import pretrain_llm
import readout
import rendering
import scenes
import torch
import torch.nn.functional as F
from pretrain_encoders import HighPath, load_path
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaForCausalLM

from mg_llava.models import RoIAlignBoxProjector
from mg_llava.models.objects.roi_align import pool_boxes

HERE = Path(__file__).resolve().parent
POOR = replace(rendering.CLEAN, poor_map=1.0, no_objects=1.0)
BATCH, WITHOUT_BOXES, SHOWN = 16, 0.5, 20
SCHEDULE, WARMUP = 450, 22
"""Steps of stage 1, the learning rate of which is followed."""


@dataclass
class Scenes:
    """Pictures with their pooled boxes.

    Attributes:
        layouts: What is in them.
        features: (n, C) pooled boxes of each.
    """

    layouts: list[language.Layout]
    features: list[Tensor]

    def change(self, how: str) -> None:
        """Take the mean from the features, and the scale as well."""
        every = torch.cat(self.features)
        mean = every.mean(0) if how != "as they are" else torch.zeros(every.shape[1])
        scale = every.std(0) if how == "standardized" else torch.ones(every.shape[1])
        self.features = [(item - mean) / scale for item in self.features]


@torch.no_grad()
def draw_scenes(path: HighPath, count: int, seed: int) -> Scenes:
    """Training pictures."""
    rng, found = np.random.default_rng(seed), Scenes([], [])
    for _ in range(count):
        scene = scenes.draw_scene(rng, "train")
        batch = readout.make_batch([scene])
        found.layouts.append([(mark.digit, mark.row, mark.column, mark.level) for mark in scene.marks])
        found.features += pool_boxes(path.stages(batch), batch.boxes, scenes.CANVAS)
    return found


class Captions:
    """Draws captions of scenes: the map as text, or as nothing while it is ``blind``, then the tokens of the boxes."""

    def __init__(self, llm: LlamaForCausalLM, folder: Path, known: Scenes) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.words = llm.model.embed_tokens
        self.renderer, self.writer = rendering.Renderer(self.words, tokenizer), pretrain_llm.Writer(tokenizer)
        self.known, self.blind = known, False

    def draw(self, rng: np.random.Generator, projector: RoIAlignBoxProjector) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (T, d), labels (T,) and box tokens (n, d) of one."""
        number = rng.integers(len(self.known.layouts))
        layout, features = self.known.layouts[number], self.known.features[number]
        ids, weights, _ = self.renderer.words(rng, layout, POOR)
        seen = self.renderer.embed(torch.from_numpy(ids), torch.from_numpy(weights), 0.0)
        if self.blind:
            seen = seen.mean(0, keepdim=True) + 0.3 * seen.std() * torch.randn_like(seen)
        tokens = projector.project(features[rng.permutation(len(features))])
        tokens = tokens[:0] if rng.random() < WITHOUT_BOXES else tokens
        question, answer = language.WHERE_PROMPT, language.where(layout)
        if rng.random() < 0.5:
            question, answer = language.caption_prompt(rng), language.caption(layout)
        before, after = self.writer.first(question)
        target = self.writer.answer(answer)
        text = self.words(torch.tensor(before + after + target)).split([len(before), len(after) + len(target)])
        row = torch.cat([text[0], seen, tokens, text[1]])
        labels = torch.full((len(row),), pretrain_llm.IGNORE)
        labels[-len(target) :] = torch.tensor(target)
        return row, labels, tokens


def train(
    llm: LlamaForCausalLM, captions: Captions, projector: RoIAlignBoxProjector, given: argparse.Namespace
) -> None:
    """AdamW as in stage 1 of the miniature; prints means over some steps."""
    rng = np.random.default_rng(given.seed)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=given.lr, betas=(0.9, 0.98), weight_decay=0.0)
    seen: list[list[float]] = []
    for step in range(given.steps):
        share = min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / SCHEDULE))
        optimizer.param_groups[0]["lr"] = given.lr * share
        captions.blind = step < given.blind
        rows, labels, tokens = zip(*(captions.draw(rng, projector) for _ in range(BATCH)), strict=True)
        inputs = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        targets = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=pretrain_llm.IGNORE)[:, 1:]
        logits = llm(inputs_embeds=inputs, use_cache=False).logits[:, :-1]
        each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        counts = (targets != pretrain_llm.IGNORE).sum(1)
        optimizer.zero_grad()
        (each.sum() / counts.sum()).backward()
        nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
        has, own, boxes = torch.tensor([len(item) > 0 for item in tokens]), each.sum(1) / counts, torch.cat(tokens)
        values = (own[has].mean(), own[~has].mean(), boxes.norm(dim=1).mean(), boxes.mean(0).norm())
        seen.append([value.item() for value in values])
        if (step + 1) % SHOWN == 0:
            shown = dict(
                zip(("with boxes", "without", "norm", "of their mean"), np.nanmean(seen, axis=0), strict=True)
            )
            print(f"step {step + 1}: " + ", ".join(f"{name} {value:.2f}" for name, value in shown.items()), flush=True)
            seen.clear()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--llm", default="object_llm", help="folder beside this file (default: %(default)s)")
    add("--steps", type=int, default=180, help="default: %(default)s")
    add("--blind", type=int, default=0, help="steps in which the map says nothing (default: %(default)s)")
    add("--lr", type=float, default=4e-3, help="default: %(default)s")
    add("--features", choices=("as they are", "centered", "standardized"), default="as they are")
    add("--token-norm", type=float, help="norm of the box tokens (default: free)")
    add("--pictures", type=int, default=400, help="default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    path = load_path("convnext", HERE)
    assert isinstance(path, HighPath)
    known = draw_scenes(path, given.pictures, seed=5)
    known.change(given.features)
    folder = HERE / given.llm
    llm = LlamaForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval().requires_grad_(False)
    projector = RoIAlignBoxProjector([known.features[0].shape[1]], llm.config.hidden_size, token_norm=given.token_norm)
    train(llm, Captions(llm, folder, known), projector, given)


if __name__ == "__main__":
    main()
