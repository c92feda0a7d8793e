"""Positions that padding wastes in packed and in padded rows of a mixture, and a training step of both ways.

The mixture is simulated, with the parts of the paper's second stage (665K of LLaVA-1.5, of which 6 % are text alone,
692K of ALLaVA, 25K about documents), 576 visual tokens a picture and the paper's table of boxes after filtering,
taken as uniform within its ranges, with 100 for the last; a picture without boxes has one box token. What the paper
does not tell is assumed: text tokens are log-normal, with median and sigma of the logarithm of 180 and 0.8 (several
short questions) in LLaVA-1.5, 900 and 0.8 for text alone, 240 and 0.35 (one long answer) in ALLaVA, 60 and 0.5 for
documents, all cut at 1,472. The sampler does not see the lengths themselves but, as in training without a token cache,
estimates, off by 15 % of the text and 30 % of the boxes.

Rows are planned for flash attention, where only positions cost something, and for attention with a mask (SDPA) in an
LLM of hidden size 4096, where long rows cost pairs as well, so that some padding pays.
"""

import argparse
from dataclasses import replace
from typing import Any

import numpy as np

from mg_llava.profiling._measure import compare_costs, measure_ways, print_table
from mg_llava.profiling.train import add_size_arguments, case_from

HELP = (
    "wasted positions of packed and padded rows in a mixture with the paper's lengths, in the sampler's order and "
    "shuffled; a training step of both ways"
)

_VISUAL = 576
_TEXT_LIMIT = 1472
_PARTS = {
    "LLaVA-1.5 with pictures": (0.94 * 665, 180, 0.8),
    "LLaVA-1.5, text alone": (0.06 * 665, 900, 0.8),
    "ALLaVA": (692, 240, 0.35),
    "documents": (25, 60, 0.5),
}
"""Samples (relative), median of the text tokens, sigma of their logarithm."""
_TEXT_ALONE = 1
_BOXES = ((43654, 1, 1), (184706, 1, 10), (91245, 11, 20), (34648, 21, 30), (22827, 31, 50), (12645, 51, 100))
"""Pictures, and fewest and most box tokens."""
_TEXT_ERROR, _BOX_ERROR = 0.15, 0.3
_MASKED = 1 / (6 * 4096)
"""Cost of a pair of positions where attention has a mask; see ``mg_llava.models.packing.pair_cost``."""


class Mixture:
    """Samples of which there are only lengths.

    Args:
        count: How many.
        seed: Of all of them.

    Attributes:
        lengths: (N,) int64, merged lengths.
        modality_length: (N,) int64, what a sampler is told: estimates, negative for text alone.
    """

    def __init__(self, count: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        shares, medians, sigmas = np.array(list(_PARTS.values())).T
        part = random.choice(len(shares), count, p=shares / shares.sum())
        text = np.exp(random.normal(np.log(medians[part]), sigmas[part]))
        text = np.clip(text, 8, _TEXT_LIMIT).astype(np.int64)
        pictures, fewest, most = np.array(_BOXES).T
        kind = random.choice(len(pictures), count, p=pictures / pictures.sum())
        boxes = random.integers(fewest[kind], most[kind] + 1)
        seen = part != _TEXT_ALONE
        self.lengths = text + seen * (_VISUAL + boxes)
        guess = text * random.normal(1, _TEXT_ERROR, count).clip(0.5, 1.5)
        guess += seen * (_VISUAL + boxes * random.normal(1, _BOX_ERROR, count).clip(0.1, 1.9))
        self.modality_length = np.where(seen, guess, -guess).astype(np.int64)

    def __len__(self) -> int:
        return len(self.lengths)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_size_arguments(parser)
    parser.set_defaults(vision="nano", stage=2, batch_size=16, text=60)
    parser.add_argument("--samples", type=int, default=50_000, help="of the mixture (default: %(default)s)")
    parser.add_argument("--capacity", type=int, default=4096, help="longest packed row (default: %(default)s)")
    parser.add_argument("--boxes", type=int, default=10, help="boxes of a picture in the step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="steps that are measured (default: %(default)s)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Simulate, measure each way in a process of its own, and print both tables.

    Returns:
        What :func:`count_waste` gives for the order of the recipe, the same under ``shuffled``; ``speedup`` and
        ``memory_ratio`` (padded to packed) of a step, ``error`` and ``gradient_error``, the largest relative
        differences of losses and gradient norms.
    """
    case = case_from(args, boxes=args.boxes)
    mixture = Mixture(args.samples, args.seed)
    orders = {"grouped": _grouped(mixture, args.batch_size, args.seed), "shuffled": _shuffled(mixture, args.seed)}
    found = {name: count_waste(lengths, args.batch_size, args.capacity) for name, lengths in orders.items()}
    _print_waste(args, mixture, found)
    rows = {"padded": None, "packed": args.capacity}
    ways = {name: replace(case, model={**case.model, "packing": capacity}) for name, capacity in rows.items()}
    measured = measure_ways("mg_llava.profiling._step.measure_steps", ways, 1, args.steps)
    columns = ("seconds", "cpu_seconds", "peak_mb")
    print()
    print_table([("step", *columns), *((name, *(way[key] for key in columns)) for name, way in measured.items())])
    compared = compare_costs(measured["packed"], measured["padded"])
    print(
        f"losses differ by {compared['error']:.1e}, gradient norms by {compared['gradient_error']:.1e} of themselves"
    )
    return {**compared, **found["grouped"], "shuffled": found["shuffled"]}


def count_waste(lengths: np.ndarray, batch_size: int, capacity: int) -> dict[str, float]:
    """Padding of whole batches.

    Args:
        lengths: (N,) merged lengths in the order of training.
        batch_size: Samples in a batch.
        capacity: Longest packed row.

    Returns:
        ``waste``, ``waste_masked`` and ``waste_padded``, shares of all positions with flash attention, with a mask,
        and in padded rows; ``rows`` and ``rows_masked``, mean number of packed rows in a batch.
    """
    from mg_llava.models.packing import plan_rows

    batches = lengths[: len(lengths) // batch_size * batch_size].reshape(-1, batch_size).tolist()
    used = sum(map(sum, batches))
    found = {"waste_padded": 1 - used / sum(len(batch) * max(batch) for batch in batches)}
    for suffix, pair in (("", 0.0), ("_masked", _MASKED)):
        rows = positions = 0
        for batch in batches:
            plan = plan_rows(batch, capacity, pair)
            rows += len(plan)
            positions += len(plan) * max(sum(batch[number] for number in row) for row in plan)
        found |= {f"waste{suffix}": 1 - used / positions, f"rows{suffix}": rows / len(batches)}
    return {name: round(value, 5) for name, value in found.items()}


def _grouped(mixture: Mixture, batch_size: int, seed: int) -> np.ndarray:
    """Lengths in the order of the second stage."""
    from mg_llava.data.samplers import LengthGroupedSampler

    return mixture.lengths[list(LengthGroupedSampler(mixture, batch_size, seed=seed))]


def _shuffled(mixture: Mixture, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(mixture.lengths)


def _print_waste(args: argparse.Namespace, mixture: Mixture, found: dict[str, dict[str, float]]) -> None:
    quantiles = np.quantile(mixture.lengths, (0.05, 0.5, 0.95)).astype(int)
    print(
        f"{len(mixture):,} samples of {mixture.lengths.mean():.0f} positions (5 %, 50 %, 95 %: "
        f"{', '.join(map(str, quantiles))}) in batches of {args.batch_size}, packed rows of up to {args.capacity}"
    )
    rows = []
    for order, ways in found.items():
        for suffix, name in (("_padded", "padded"), ("", "packed, flash"), ("_masked", "packed, mask")):
            rows.append((order, name, f"{ways[f'waste{suffix}']:.2%}", ways.get(f"rows{suffix}", args.batch_size)))
    print_table([("order", "rows", "wasted", "a batch"), *rows])
