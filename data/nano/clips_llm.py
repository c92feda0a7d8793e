"""Teach the miniature's LLM to read clips as text, frame after frame; it sees no picture here.

It goes on from data/nano/llm, whose words for what is in a cell stay as they are, so that projectors of either LLM
write what the other reads. Of four conversations three are about clips (``clips.py``), one is about a scene as before.

Examples:
    python data/nano/clips_llm.py                 # into data/nano/generated/clips_llm: about ten minutes of a core
    python data/nano/clips_llm.py --steps 20 --out /tmp/small
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
import clips  # noqa: E402
import pretrain_llm  # noqa: E402
import rendering  # noqa: E402
from optimizer import Optimizer  # noqa: E402

OUT = HERE / "generated" / "clips_llm"
SHARE = 0.75
"""Share of conversations that are about clips."""
LAST = pretrain_llm.PHASES[-1]
PHASES = (
    replace(LAST, until=0.45, keep_empty=0.0, noise=rendering.CLEAN),
    replace(LAST, until=0.8, keep_empty=0.25),
    LAST,
)


class ClipSampler(pretrain_llm.Sampler):
    """Draws conversations about clips, and now and then about scenes."""

    def draw(self, rng: np.random.Generator) -> pretrain_llm.Drawn:
        """A clip, or a scene, with questions and answers about it."""
        if rng.random() >= SHARE:
            return super().draw(rng)
        clip = clips.sample_clip(rng)
        scene = self.render(rng, clip)
        return self.write(scene, clips.questions(rng, clip))

    def render(self, rng: np.random.Generator, clip: clips.Clip) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Words, weights and places of all frames' map tokens; the last is always there, as the text follows it."""
        noise = replace(self.phase.noise, no_objects=1.0, unknown_map=0.0)
        parts = []
        for number, items in enumerate(clip.frames):
            words, weights, _ = self.renderer.words(rng, items, noise)
            kept = (words[:, rendering.CONTENT] != self.renderer.word[rendering.EMPTY]) | (
                rng.random(len(words)) < self.phase.keep_empty
            )
            kept[-1] |= number == len(clip.frames) - 1
            parts.append((words[kept], weights[kept], np.flatnonzero(kept) + number * rendering.CELLS))
        words, weights, places = (np.concatenate(column) for column in zip(*parts, strict=True))
        return words, weights, places


@torch.no_grad()
def measure(llm: Any, sampler: ClipSampler, seed: int, scenes: int = 60) -> dict[str, float]:
    """Share of questions about perfect texts of clips that are answered right, by kind."""
    rng, right = np.random.default_rng(seed), {}
    sampler.phase = replace(LAST, noise=rendering.CLEAN)
    for kind in clips.KINDS:
        hits = 0
        for _ in range(scenes):
            clip = clips.sample_clip(rng, kind if kind in clips.CHANGE else "order")
            question = clips.ask(rng, clip, kind)
            words, weights, _ = sampler.render(rng, clip)
            scene = sampler.renderer.embed(torch.from_numpy(words), torch.from_numpy(weights), 0.0)
            before, after = (torch.tensor(part) for part in sampler.writer.first(question.question))
            target = torch.tensor(sampler.writer.answer(question.answer))
            text = sampler.renderer.embedding
            hidden = torch.cat([text(before), scene, text(after), text(target)])[None]
            logits = llm(inputs_embeds=hidden).logits[0, -len(target) - 1 : -1]
            hits += bool((logits.argmax(1) == target).all())
        right[kind] = hits / scenes
    return right


def train(llm: Any, sampler: ClipSampler, arguments: argparse.Namespace) -> None:
    """Muon and AdamW with warm-up and cosine; word embeddings stay."""
    rng = np.random.default_rng(arguments.seed)
    llm.model.embed_tokens.weight.requires_grad_(False)
    matrices = [parameter for parameter in llm.model.layers.parameters() if parameter.ndim == 2]
    optimizer = Optimizer(llm, matrices, arguments.steps, arguments.lr, matrix_lr=10 * arguments.lr)
    average = 0.0
    for step in range(arguments.steps):
        sampler.phase = next(phase for phase in PHASES if step < phase.until * arguments.steps)
        embeddings, labels, positions = sampler.batch(rng, arguments.batch_size)
        hidden = llm.model(inputs_embeds=embeddings, position_ids=positions, use_cache=False).last_hidden_state
        wanted = labels[:, 1:] != pretrain_llm.IGNORE
        loss = F.cross_entropy(llm.lm_head(hidden[:, :-1][wanted]), labels[:, 1:][wanted])
        optimizer.step(loss)
        average += (loss.item() - average) * max(0.05, 1 / (step + 1))
        if step % 25 == 0 or step == arguments.steps - 1:
            print(f"step {step + 1}/{arguments.steps}  loss {average:.3f}", flush=True)


def main() -> None:
    """Command line."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, help="conversations per step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="of AdamW; Muon's is tenfold (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--start", type=Path, default=HERE / "llm", help="default: data/nano/llm")
    parser.add_argument("--out", type=Path, default=OUT, help="default: data/nano/generated/clips_llm")
    arguments = parser.parse_args()
    if (arguments.out / "config.json").is_file():
        print(f"{arguments.out} is there; nothing to do")
        return
    torch.manual_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.start)
    llm = AutoModelForCausalLM.from_pretrained(arguments.start, torch_dtype=torch.float32).train()
    renderer = rendering.Renderer(llm.model.embed_tokens, tokenizer)
    sampler = ClipSampler(pretrain_llm.Writer(tokenizer), renderer, 4, PHASES[0])
    train(llm, sampler, arguments)
    pretrain_llm.save(llm, tokenizer, arguments.out)
    found = measure(llm, sampler, arguments.seed + 1)
    print(
        "right answers to perfect texts: " + ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in found.items())
    )


if __name__ == "__main__":
    main()
