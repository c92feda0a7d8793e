"""Train the projector of boxes alone, through the frozen LLM, on captions of scenes whose poor map is given as text.

It shows whether box tokens come to tell digits apart, or only how many they are: the loss of captions with boxes,
with those of another picture that has as many, and without; the norm of the tokens, and the norm of their mean. Before
that, what the LLM makes of objects as text. With ``--map`` the map is what a trained projector makes of CLIP's tokens.

Examples:
    python data/nano/probe_boxes.py
    python data/nano/probe_boxes.py --blind 100 --lr 1e-3 --features centered
    python data/nano/probe_boxes.py --llm llm --loud 1 --token-norm 2
    python data/nano/probe_boxes.py --map work_dirs/mg_llava_nano_pretrain_low_only/iter_450.pth
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import language
import numpy as np
import pretrain_llm
import pretrain_objects
import readout
import rendering
import scenes
import torch
import torch.nn.functional as F
from pretrain_encoders import HighPath, LowPath, load_path
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaForCausalLM

from mg_llava.models import MLPProjector, RoIAlignBoxProjector
from mg_llava.models.objects.roi_align import pool_boxes
from mg_llava.models.weights.checkpoint import load_training_checkpoint

HERE = Path(__file__).resolve().parent
POOR = replace(rendering.CLEAN, poor_map=1.0, no_objects=1.0)
MAPS = {"poor map": POOR, "map without digits": replace(POOR, poor_map=0.0, unknown_map=1.0)}
BATCH, WITHOUT_BOXES, SHOWN, COMPARED = 16, 0.5, 20, 6
SHARES = (0.0, 0.05, 0.1, 0.175, 0.25, 0.5, 1.0)
SCHEDULE, WARMUP = 450, 22
"""Steps of stage 1, the learning rate of which is followed."""
Objects = Callable[[int], Tensor]
"""Object tokens (n, d) of the scene of a number."""


@dataclass
class Scenes:
    """Pictures with their pooled boxes.

    Attributes:
        layouts: What is in them.
        features: (n, C) pooled boxes of each.
        maps: (64, C) of each, CLIP's tokens.
    """

    layouts: list[language.Layout]
    features: list[Tensor]
    maps: list[Tensor]

    def change(self, how: str) -> None:
        """Take the mean from the features, and the scale as well."""
        every = torch.cat(self.features)
        mean = every.mean(0) if how != "as they are" else torch.zeros(every.shape[1])
        scale = every.std(0) if how == "standardized" else torch.ones(every.shape[1])
        self.features = [(item - mean) / scale for item in self.features]

    def another(self, number: int) -> int:
        """The next scene with as many marks, or itself."""
        count, total = len(self.layouts[number]), len(self.layouts)
        others = ((number + step) % total for step in range(1, total))
        return next((other for other in others if len(self.layouts[other]) == count), number)


@torch.no_grad()
def draw_scenes(high: HighPath, low: LowPath, count: int, seed: int) -> Scenes:
    """Training pictures."""
    rng, found = np.random.default_rng(seed), Scenes([], [], [])
    for _ in range(count):
        scene = scenes.draw_scene(rng, "train")
        batch = readout.make_batch([scene])
        found.layouts.append([(mark.digit, mark.row, mark.column, mark.level) for mark in scene.marks])
        found.features += pool_boxes(high.stages(batch), batch.boxes, scenes.CANVAS)
        found.maps += [*low.cell_features(batch)]
    return found


@dataclass
class Losses:
    """Of a batch of captions: sums (B,) over their tokens, these counted, which have objects, all object tokens."""

    sums: Tensor
    counts: Tensor
    has: Tensor
    tokens: Tensor

    def mean(self, has: bool) -> float:
        """Mean over the captions with objects, or over those without."""
        return float((self.sums / self.counts)[self.has == has].mean())


class Captions:
    """Draws captions of scenes: the map as text, as nothing while it is ``blind``, or by a ``projector`` of CLIP's."""

    def __init__(
        self, llm: LlamaForCausalLM, folder: Path, known: Scenes, projector: nn.Module | None, loud: float
    ) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.words = llm.model.embed_tokens
        self.renderer = rendering.Renderer(self.words, tokenizer)
        self.sampler = pretrain_llm.Sampler(pretrain_llm.Writer(tokenizer), self.renderer, 2, pretrain_llm.PHASES[-1])
        self.known, self.projector, self.blind, self.loud, self.noise = known, projector, False, loud, POOR

    def draw(self, rng: np.random.Generator, objects: Objects) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (T, d), labels (T,) and object tokens (n, d) of one, which half of them have."""
        number = int(rng.integers(len(self.known.layouts)))
        layout = self.known.layouts[number]
        seen = self._map(rng, number)
        tokens = objects(number)
        tokens = tokens[:0] if rng.random() < WITHOUT_BOXES else tokens[rng.permutation(len(tokens))]
        asked = [
            language.Question("caption", language.caption_prompt(rng), language.caption(layout)),
            language.Question("where", language.WHERE_PROMPT, language.where(layout)),
        ]
        drawn = self.sampler.write(((),) * 3, asked)  # the scene is put in below
        text = self.words(torch.tensor(drawn.ids))
        row = torch.cat([text[: drawn.place], seen, tokens, text[drawn.place :]])
        nothing = [pretrain_llm.IGNORE] * (len(seen) + len(tokens))
        labels = torch.tensor(drawn.labels[: drawn.place] + nothing + drawn.labels[drawn.place :])
        return row, labels, tokens

    def _map(self, rng: np.random.Generator, number: int) -> Tensor:
        if self.projector is not None:
            return self.projector(self.known.maps[number])
        ids, weights, _ = self.renderer.words(rng, self.known.layouts[number], self.noise)
        seen = self.renderer.embed(torch.from_numpy(ids), torch.from_numpy(weights), 0.0)
        return seen.mean(0, keepdim=True) + 0.3 * seen.std() * torch.randn_like(seen) if self.blind else seen

    def text(self, number: int, share: float = 1.0) -> Tensor:
        """Objects as the LLM has read them; of the words for what one is, and its size, a share."""
        rng = np.random.default_rng(number)
        ids, weights, _ = self.renderer.words(
            rng, self.known.layouts[number], replace(rendering.CLEAN, loud=self.loud)
        )
        weights[:, rendering.CONTENT] *= share
        weights[:, rendering.SIZE] *= share
        return self.renderer.embed(torch.from_numpy(ids), torch.from_numpy(weights), 0.0)[rendering.CELLS :]

    def losses(self, llm: LlamaForCausalLM, rng: np.random.Generator, objects: Objects) -> Losses:
        """Of a new batch."""
        rows, labels, tokens = zip(*(self.draw(rng, objects) for _ in range(BATCH)), strict=True)
        inputs = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        targets = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=pretrain_llm.IGNORE)[:, 1:]
        logits = llm(inputs_embeds=inputs, use_cache=False).logits[:, :-1]
        each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        has = torch.tensor([len(item) > 0 for item in tokens])
        return Losses(each.sum(1), (targets != pretrain_llm.IGNORE).sum(1), has, torch.cat(tokens))


@torch.no_grad()
def compare(llm: LlamaForCausalLM, captions: Captions, objects: Objects, seed: int) -> tuple[float, float, float]:
    """Loss of captions with objects, with those of another scene that has as many, and without."""
    means = []
    for chosen in (objects, lambda number: objects(captions.known.another(number))):
        rng = np.random.default_rng(seed + 1)
        found = [captions.losses(llm, rng, chosen) for _ in range(COMPARED)]
        means.append([np.nanmean([batch.mean(has) for batch in found]) for has in (True, False)])
    return float(means[0][0]), float(means[1][0]), float(means[0][1])


def train(
    llm: LlamaForCausalLM, captions: Captions, projector: RoIAlignBoxProjector, given: argparse.Namespace
) -> None:
    """AdamW as in stage 1 of the miniature; prints means over some steps."""
    rng, known = np.random.default_rng(given.seed), captions.known
    optimizer = torch.optim.AdamW(projector.parameters(), lr=given.lr, betas=(0.9, 0.98), weight_decay=0.0)
    seen: list[list[float]] = []
    for step in range(given.steps):
        share = min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / SCHEDULE))
        optimizer.param_groups[0]["lr"] = given.lr * share
        captions.blind = step < given.blind
        batch = captions.losses(llm, rng, lambda number: projector.project(known.features[number]))
        optimizer.zero_grad()
        (batch.sums.sum() / batch.counts.sum()).backward()
        nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
        norms = (batch.tokens.norm(dim=1).mean().item(), batch.tokens.mean(0).norm().item())
        seen.append([batch.mean(True), batch.mean(False), *norms])
        if (step + 1) % SHOWN == 0:
            own, other, _ = compare(llm, captions, lambda n: projector.project(known.features[n]), given.seed)
            names = ("with boxes", "without", "norm", "of their mean")
            shown = dict(zip(names, np.nanmean(seen, axis=0), strict=True)) | {"own": own, "of another": other}
            print(f"step {step + 1}: " + ", ".join(f"{name} {value:.2f}" for name, value in shown.items()), flush=True)
            seen.clear()


def load_map_projector(checkpoint: Path) -> MLPProjector:
    """The projector of a checkpoint of stage 1 of ``low_only``, frozen."""
    weights = load_training_checkpoint(checkpoint)
    own = {key.removeprefix("projector."): value for key, value in weights.items() if key.startswith("projector.")}
    width, channels = own["model.0.weight"].shape
    projector = MLPProjector(channels, width)
    projector.load_state_dict(own)
    return projector.requires_grad_(False)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--llm", default="object_llm", help="folder beside this file (default: %(default)s)")
    add("--steps", type=int, default=180, help="default: %(default)s")
    add("--blind", type=int, default=0, help="steps in which the map says nothing (default: %(default)s)")
    add("--lr", type=float, default=4e-3, help="default: %(default)s")
    add("--features", choices=("as they are", "centered", "standardized"), default="as they are")
    add("--map", type=Path, help="checkpoint of the row low_only whose projector makes the map (default: text)")
    add("--loud", type=float, default=pretrain_objects.LOUD, help="length of objects as text (default: %(default)s)")
    add("--token-norm", type=float, help="norm of the box tokens (default: free)")
    add("--pictures", type=int, default=400, help="default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    high, low = load_path("convnext", HERE), load_path("clip", HERE)
    assert isinstance(high, HighPath) and isinstance(low, LowPath)
    known = draw_scenes(high, low, given.pictures, seed=5)
    known.change(given.features)
    folder = HERE / given.llm
    llm = LlamaForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval().requires_grad_(False)
    captions = Captions(llm, folder, known, load_map_projector(given.map) if given.map else None, given.loud)
    own, other, without = compare(llm, captions, captions.text, given.seed)
    print(f"objects as text: own {own:.2f}, of another {other:.2f}, without {without:.2f}")
    for name, captions.noise in MAPS.items() if given.map is None else [("map of a run", POOR)]:
        faint = [compare(llm, captions, partial(captions.text, share=share), given.seed)[0] for share in SHARES]
        told = (f"{share} {value:.2f}" for share, value in zip(SHARES, faint, strict=True))
        print(f"own, faint, {name}: {', '.join(told)}", flush=True)
    captions.noise = POOR
    projector = RoIAlignBoxProjector([known.features[0].shape[1]], llm.config.hidden_size, token_norm=given.token_norm)
    train(llm, captions, projector, given)


if __name__ == "__main__":
    main()
