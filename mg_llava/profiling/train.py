"""A training step at real sizes with random weights: ours, the published way of the same step, and single levers."""

import argparse
import inspect
import json
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import Any

from mg_llava.profiling._measure import compare_costs, difference, measure_ways, print_table, rounded, run_child

HELP = (
    "training step: samples/s, tokens/s, MFU, peak memory and time by part, with the published way beside it "
    "(--baseline reference) and with each lever switched (--alone)"
)

_HERE = "mg_llava.profiling._step"
_SWITCHES: dict[str, tuple[Any, Any]] = {
    "packing": (None, 4096),
    "loss_chunk": (None, 1024),
    "loss_kernel": ("torch", "liger"),
    "compile_vision": (False, True),
}
"""Arguments of the model that are levers: off and on."""
_CHECKPOINTING: dict[str, Any] = {"off": False, "full": True, "selective": "selective"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_size_arguments(parser)
    parser.add_argument(
        "--boxes", type=int, nargs="+", default=[100], help="boxes of a picture; more numbers are more tables (100)"
    )
    parser.add_argument("--steps", type=int, default=1, help="steps that are measured (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them (default: %(default)s)")
    parser.add_argument("--alone", action="store_true", help="measure our way with each lever switched alone, too")
    parser.add_argument("--peak-tflops", type=float, help="what MFU is of (default: the maker's number, or measured)")


def add_size_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say what to build; ``scaling`` has them too."""
    parser.add_argument(
        "--llm", default="nano", help="nano, smollm2-135m, qwen2.5-0.5b, phi3-mini, vicuna7b, … (nano)"
    )
    parser.add_argument("--vision", choices=("paper", "nano"), default="paper", help="encoders (default: %(default)s)")
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1, help="stage of the recipe (default: 1)")
    parser.add_argument("--baseline", choices=("reference", "none"), default="reference", help="what stands beside")
    parser.add_argument("--device", default="cpu", help="cpu (float32) or cuda (bfloat16) (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=2, help="samples in a step (default: %(default)s)")
    parser.add_argument("--text", type=int, default=232, help="mean text tokens of a sample (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch, on a CPU (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default: %(default)s)")
    parser.add_argument(
        "--checkpointing",
        choices=list(_CHECKPOINTING),
        default="full",
        help="what activations of the LLM are computed again, in both ways (default: full, as in the recipe)",
    )
    parser.add_argument(
        "--model", nargs="+", default=[], metavar="KEY=VALUE", help="more arguments of our model, such as packing=4096"
    )


def case_from(args: argparse.Namespace, **values: Any) -> Any:
    """The case of a command line, in our way.

    Raises:
        ValueError: The LLM is neither known nor a path or hub name, or ``--model`` is no list of ``KEY=VALUE`` with
            arguments of the model.
    """
    from mg_llava.profiling._sizes import LLMS, Case

    if args.llm not in LLMS and "/" not in args.llm:
        raise ValueError(f"unknown LLM {args.llm!r}; known: {', '.join(LLMS)}, and paths")
    model, known = _parse(args.model), _known_options()
    if unknown := [key for key in model if key not in known]:
        raise ValueError(f"the model has no {', '.join(unknown)}; it has {', '.join(known)}")
    checkpointing = _CHECKPOINTING[args.checkpointing]
    names = ("llm", "vision", "device", "batch_size", "text", "threads", "seed")
    common = {name: getattr(args, name) for name in names} | {"llm_trains": "nothing" if args.stage == 1 else "all"}
    return Case(**{**common, "checkpointing": checkpointing, "model": model, **values})


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, each way in a process of its own, and print a table.

    Returns:
        For the first number of boxes: ``speedup`` in samples/s and ``memory_ratio`` of peak memory (reference to
        ours), ``error``, the largest relative difference of the losses, ``gradient_error`` likewise of the norms,
        ``mfu`` and what each way took; for more numbers of boxes the same under ``by_boxes``.
    """
    case_from(args)  # says what is wrong before anything is measured
    device = run_child(f"{_HERE}.describe_device", args.device, args.threads)
    if args.peak_tflops:
        device["published"] = args.peak_tflops * 1e12
    results = {boxes: _measure_boxes(args, boxes, device) for boxes in args.boxes}
    first, *more = args.boxes
    extra = {"by_boxes": {str(boxes): results[boxes] for boxes in more}} if more else {}
    return {**results[first], **extra, "device": device, "stage": args.stage, "llm": args.llm, "vision": args.vision}


def _measure_boxes(args: argparse.Namespace, boxes: int, device: dict[str, Any]) -> dict[str, Any]:
    case = case_from(args, boxes=boxes)
    ways = {"ours": case}
    if args.baseline == "reference":
        ways["reference"] = replace(case, way="reference", model={})
    if args.alone:
        ways |= _switched(case)
    print(f"{boxes} boxes", file=sys.stderr, flush=True)
    measured = measure_ways(f"{_HERE}.measure_steps", ways, args.warmup, args.steps)
    work = run_child("mg_llava.profiling._sizes.count_work", asdict(case), args.warmup, args.steps)
    peak = device["published"] or device["measured"]
    for found in measured.values():
        found["samples_per_s"] = args.batch_size / found["seconds"]
        found["tokens_per_s"] = work["tokens"] / found["seconds"]
        found["mfu"] = work["flops"] / found["seconds"] / peak
    _print_table(args, boxes, device, measured, work)
    ours, reference = measured["ours"], measured.get("reference")
    compared = {} if reference is None else compare_costs(ours, reference)
    shown = {name: ours[name] for name in ("mfu", "samples_per_s", "tokens_per_s", "peak_mb")}
    sizes = {"boxes": boxes, "batch_size": args.batch_size}
    gflops = work["flops"] / args.batch_size / 1e9
    ways_taken = {name: {**rounded(found), "losses": found["losses"]} for name, found in measured.items()}
    return {**compared, **rounded(shown), **sizes, "gflops_per_sample": round(gflops, 1), "ways": ways_taken}


def _known_options() -> dict[str, inspect.Parameter]:
    """Arguments of a model that a case may change; those of its loss begin with ``loss_``."""
    from mg_llava.models.assembly import Assembly
    from mg_llava.models.losses.language import LanguageLoss

    known = dict(inspect.signature(Assembly.__init__).parameters)
    return known | {f"loss_{name}": value for name, value in inspect.signature(LanguageLoss).parameters.items()}


def _switched(case: Any) -> dict[str, Any]:
    """Our way with each lever switched alone; those that this machine lacks something for are left out."""
    from mg_llava.profiling._sizes import LEVERS

    ways = {f"without {lever}": replace(case, off=[lever]) for lever in LEVERS}
    known = _known_options()
    for name, (off, on) in _SWITCHES.items():
        now = case.model.get(name, known[name].default)
        word, value = ("with", on) if now == off else ("without", off)
        if value != "liger" or (case.device.startswith("cuda") and find_spec("liger_kernel")):
            ways[f"{word} {name}"] = replace(case, model={**case.model, name: value})
    for name, how in _CHECKPOINTING.items():
        if how != case.checkpointing:
            ways[f"checkpointing {name}"] = replace(case, checkpointing=how)
    return ways


def _print_table(
    args: argparse.Namespace, boxes: int, device: dict[str, Any], measured: dict[str, Any], work: dict[str, Any]
) -> None:
    from mg_llava.profiling._step import PARTS

    print(
        f"\nstage {args.stage}, {args.llm} with the {args.vision} encoders, {args.batch_size} samples of one picture, "
        f"{boxes} boxes and about {args.text} text tokens, {args.steps} steps after {args.warmup}; {device['name']}"
    )
    columns = ("samples_per_s", "tokens_per_s", "mfu", "peak_mb", "cpu_seconds")
    losses, rows = measured["ours"]["losses"], []
    for name, found in measured.items():
        parts = [found["parts"][part] for part in PARTS]
        rows.append((name, *(found[key] for key in columns), *parts, difference(found["losses"], losses)))
    heads = ("samples/s", "tokens/s", "MFU", "peak MB", "CPU s", *(f"{part} s" for part in PARTS), "loss differs")
    print_table([("way", *heads), *rows])
    kind = "published" if device["published"] else "measured"
    rate = device["published"] or device["measured"]
    limit = rate / (work["flops"] / args.batch_size)
    print(
        f"{work['flops'] / args.batch_size / 1e9:.0f} GFLOPs a sample, nothing counted twice; at the {kind} "
        f"{rate / 1e12:.3g} TFLOP/s (matrix products reach {device['measured'] / 1e12:.3g}) the limit is "
        f"{limit:.3g} samples/s"
    )


def _parse(pairs: list[str]) -> dict[str, Any]:
    """``KEY=VALUE`` with values in JSON."""
    found = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            separator = ""
        if not separator:
            raise ValueError(f"{pair!r} is not KEY=VALUE with a JSON value, such as packing=4096 or loss_chunk=null")
    return found
