"""Command lines of evaluations: arguments, and what they mean. Imports torch only when something is run."""

import argparse
import contextlib
import sys
from dataclasses import fields
from pathlib import Path

from mg_llava.work.numbers import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what all evaluations have in common."""
    add = parser.add_argument
    add(
        "--checkpoint",
        help="with a config: .pth file, DeepSpeed folder, safetensors file, or the work directory of a run",
    )
    add(
        "--boxes",
        help="detected, none, oracle, shuffled, jitter=0.1, top=10, or a box file; several with commas between them "
        "make an ablation (default: detected where there are boxes or a detector, else none)",
    )
    add(
        "--box-file",
        type=Path,
        help="detected boxes, or a folder with BENCHMARK.json or BENCHMARK.safetensors (default: boxes/ in --data)",
    )
    add("--oracle-boxes", type=Path, help="box file of the annotations, for --boxes oracle")
    add(
        "--detector",
        help="finds missing boxes: proposals, owlv2:PATH, ... or a config file, as in tools/generate_boxes.py "
        "(default: the config's `detector`)",
    )
    add("--tagger", help="tags for the detector: ram:CHECKPOINT, coco80, ..., as in tools/generate_boxes.py")
    add("--fusion", default="on", help="on, off, or on,off (default: %(default)s)")
    add("--without", default="", help="prompt, objects, or both with a comma: also ask without these (default: none)")
    add("--prompt", help="version of the prompts (default: each benchmark's first)")
    add("--frames", type=whole(), help="frames of each video (default: as many as the model was trained with)")
    add("--limit", type=whole(), help="only the first so many questions of each benchmark")
    add("--batch-size", type=whole(), default=32, help="questions at a time (default: %(default)s)")
    add("--max-new-tokens", type=whole(), help="longest reply (default: each benchmark's)")
    add("--workers", type=whole(), default=2, help="threads that decode pictures (default: %(default)s)")
    add("--cache-mb", type=whole(), default=1024, help="limit of kept picture features (default: %(default)s)")
    add(
        "--bad-samples",
        choices=("report", "raise"),
        default="report",
        help="questions whose picture cannot be read: count them, or end (default: %(default)s)",
    )
    add("--apply-exif", action="store_true", help="turn pictures as their EXIF orientation says")
    add("--device", default="auto", help="auto, cpu, cuda:0, ... (default: each process its own GPU)")
    add(
        "--gallery",
        type=whole(0),
        default=0,
        metavar="N",
        help="page of N pictures with boxes of replies (boxes.html)",
    )
    add("--out", type=Path, help="folder of results (default: work_dirs/evaluation/CHECKPOINT)")
    add("--fresh", action="store_true", help="throw away the replies of an earlier run in --out")


def run(arguments: argparse.Namespace, names: list[str]) -> int:
    """Evaluate, and print the table.

    Args:
        arguments: Of :func:`add_arguments`, and ``model`` and ``data``.
        names: Benchmarks, as ``suite.build_benchmarks`` takes them.

    Returns:
        The exit status: 0 evaluated, 1 something could not be read or does not fit, 130 stopped.
    """
    given = arguments.checkpoint
    out = arguments.out or Path("work_dirs", "evaluation", Path(given).stem if given else Path(arguments.model).name)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the log; stdout is for the table
            table = _evaluate(arguments, names, out)
    except (OSError, ValueError, RuntimeError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command continues where this one ended\n")
        return 130
    if table:
        sys.stdout.write(f"{table}\n\nwrote {out / 'results.json'} and {out / 'report.html'}\n")
    return 0


def _evaluate(arguments: argparse.Namespace, names: list[str], out: Path) -> str:
    from mg_llava.evaluation.ablation import parse_settings
    from mg_llava.evaluation.runner import Asking
    from mg_llava.evaluation.suite import Suite, build_benchmarks, find_box_files, load_predictor
    from mg_llava.inference.loading import open_source
    from mg_llava.work.processes import Processes

    source = open_source(arguments.model)
    benchmarks = build_benchmarks(names, arguments.data, arguments.prompt, arguments.frames)
    box_files = find_box_files([benchmark.name for benchmark in benchmarks], arguments.data, arguments.box_file)
    processes = Processes()
    predictor, identity = load_predictor(
        source, arguments.checkpoint, processes, arguments.device, arguments.apply_exif
    )
    detector = None if isinstance(source, Path) else source.get("detector")
    if arguments.detector:
        from mg_llava.detection.pipeline import build_pipeline

        detector = build_pipeline(arguments.detector, arguments.tagger)
    boxes = arguments.boxes or ("detected" if any([*box_files.values(), detector]) else "none")
    suite = Suite(
        predictor=predictor,
        identity=identity,
        benchmarks=benchmarks,
        out=out,
        processes=processes,
        settings=parse_settings(boxes, arguments.fusion, arguments.without),
        box_files=box_files,
        oracle=arguments.oracle_boxes,
        detector=detector,
        asking=Asking(**{field.name: getattr(arguments, field.name) for field in fields(Asking)}),
        generation={} if arguments.max_new_tokens is None else {"max_new_tokens": arguments.max_new_tokens},
        gallery=arguments.gallery,
    )
    return suite.run()
