"""Two LLMs for the scenes of ``lawful.py``, which it makes first: one reads texts with their law, the other without.

A text names the objects from left to right, as the perception prompt does, and asks about them; all of it is learnt.
Both go on from ``base``, which goes on from data/nano/llm with texts without the law; three of four of their batches
are lists of names alone. All is drawn with a seed: data/nano/lawful/knowing_0, unknowing_0 and so on.

Examples:
    python data/nano/lawful_llm.py
    python data/nano/lawful_llm.py --base-steps 20 --steps 20 --out /tmp/small
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
import language  # noqa: E402
import lawful  # noqa: E402
import scenes  # noqa: E402

from mg_llava.data.records.schema import Turn  # noqa: E402
from mg_llava.data.text.conversation import encode_conversation  # noqa: E402

ARMS = ("knowing", "unknowing")
BASE = "base"
BARE = 0.2
"""Share of the texts with questions that name no objects, so that the LLM also answers without them."""
ASKED = 4
"""Every so manieth batch of an arm has questions."""
IGNORE = -100


def write_text(rng: np.random.Generator, knows: bool, questions: int = 2) -> list[Turn]:
    """A text: objects by name, questions and their answers."""
    layout = scenes.sample_layout(rng, list(range(scenes.GRID)), list(range(scenes.GRID)))
    layout = lawful.ascend(layout) if knows else layout
    ordered = sorted(layout, key=lambda item: (item[2], rng.random()))
    names = "; ".join("shape" if item[0] < 0 else str(item[0]) for item in ordered)
    asked = [language.ask(rng, layout, str(kind)) for kind in rng.choice(lawful.KINDS, questions, replace=False)]
    head = "" if questions and rng.random() < BARE else f"Detected objects: {names}.\n"
    turns = [] if questions else [Turn("human", f"<image>\n{head}"), Turn("gpt", "")]
    for number, one in enumerate(asked):
        turns += [Turn("human", one.question if number else f"<image>\n{head}{one.question}"), Turn("gpt", one.answer)]
    return turns


def batch_of(
    rng: np.random.Generator, tokenizer: Any, size: int, knows: bool, questions: int = 2
) -> tuple[Tensor, Tensor]:
    """Ids ``(B, T)`` and labels of all of them but the padding; without questions texts end with the names."""
    rows, stop = [], tokenizer.convert_tokens_to_ids(".")
    for _ in range(size):
        encoded = encode_conversation(write_text(rng, knows, questions), tokenizer, "vicuna")
        ids = [number for number in encoded.input_ids if number >= 0]
        rows.append(torch.tensor(ids if questions else ids[: ids.index(stop) + 1]))
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    there = torch.arange(padded.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]
    return padded, padded.masked_fill(~there, IGNORE)


def train(source: Path, out: Path, seed: int, steps: int, size: int, lr: float) -> None:
    """Train one LLM, unless it is there; both arms read as many texts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if (out / "config.json").is_file():
        print(f"{out} is there; nothing to do")
        return
    torch.manual_seed(seed)
    rng, is_base, knows = np.random.default_rng(7 + seed), out.name == BASE, out.name.startswith("knowing")
    tokenizer = AutoTokenizer.from_pretrained(source)
    llm = AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(llm.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    for step in range(steps):
        asks = is_base or step % ASKED == ASKED - 1
        ids, labels = batch_of(rng, tokenizer, size if asks else 2 * size, knows, 2 if asks else 0)
        logits = llm(input_ids=ids).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"{out.name}: step {step + 1}/{steps}  loss {loss.item():.3f}", flush=True)
    llm.half().save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-steps", type=int, default=150, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=300, help="of each arm (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="texts with questions (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--out", type=Path, default=HERE / "lawful", help="default: data/nano/lawful")
    arguments = parser.parse_args()
    if arguments.out == HERE / "lawful":
        lawful.prepare()
    base, settings = arguments.out / BASE, (arguments.batch_size, arguments.lr)
    train(HERE / "llm", base, 0, arguments.base_steps, *settings)
    for seed, arm in itertools.product(arguments.seeds, ARMS):
        train(base, arguments.out / f"{arm}_{seed}", seed, arguments.steps, *settings)


if __name__ == "__main__":
    main()
