"""Measure what each branch buys: four variants x seeds, trained with `xtuner train`, evaluated on held-out pictures.

Every finished run is written to a JSON file at once and not repeated; the report is the part between two marks of
RESULTS.md, whose other text stays.

Examples:
    python data/nano/measure.py
    python data/nano/measure.py --variants low_only full --seeds 0 --jobs 1
    python data/nano/measure.py --report-only
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jobs import ROOT, Note, RunError, run_all
from runs import (
    NANO,
    VARIANTS,
    Settings,
    Variant,
    make_data,
    read_json,
    run_fingerprint,
    train_and_evaluate,
)

from mg_llava.work.atomic import write_json

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
Entry = dict[str, Any]

_writing = threading.Lock()


def measure_one(variant: Variant, seed: int, settings: Settings, results: Path, note: Note) -> None:
    """Train and evaluate one run, and add it to the results."""
    outcome = train_and_evaluate(variant, seed, settings, note)
    entry = {
        "variant": variant.name,
        "seed": seed,
        "boxes": settings.boxes,
        "fingerprint": run_fingerprint(variant, seed, settings),
        "kinds": {kind: cell["accuracy"] for kind, cell in outcome.result["kinds"].items()},
        "all": outcome.result["overall"]["accuracy"],
        "chance": {kind: cell["chance"] for kind, cell in outcome.result["kinds"].items()},
        "chance_all": outcome.result["overall"]["chance"],
        "questions": outcome.result["overall"]["count"],
        "seconds": outcome.seconds,
    }
    add_entry(results, entry)


def add_entry(results: Path, entry: Entry) -> None:
    """Add a run to the results file in place of an older one of the same variant, seed and boxes."""
    same = ("variant", "seed", "boxes")
    order = list(VARIANTS)
    with _writing:
        others = [old for old in load_entries(results) if any(old[key] != entry[key] for key in same)]
        write_json(results, sorted([*others, entry], key=lambda e: (e["boxes"], order.index(e["variant"]), e["seed"])))


def load_entries(results: Path) -> list[Entry]:
    """The runs of a results file."""
    return list(read_json(results))


def report(entries: Sequence[Entry], cfg_options: Sequence[str] = ()) -> str:
    """Mean and spread in percent by kind of question, as Markdown; only runs of one kind of boxes."""
    names = [name for name in VARIANTS if any(entry["variant"] == name for entry in entries)]
    groups = {name: [entry for entry in entries if entry["variant"] == name] for name in names}
    first = entries[0]
    seeds = sorted({entry["seed"] for entry in entries})
    lines = [
        f"Exact match in % on {first['questions']} held-out questions, mean ± standard deviation over the seeds "
        f"{', '.join(map(str, seeds))} (sample standard deviation; boxes: {first['boxes']}).",
        "",
        "| question kind | chance | " + " | ".join(_title(name, groups[name], seeds) for name in names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for kind in first["kinds"]:
        cells = [_spread([entry["kinds"][kind] for entry in groups[name]]) for name in names]
        lines.append(f"| {kind} | {100 * first['chance'][kind]:.1f} | {' | '.join(cells)} |")
    cells = [f"**{_spread([entry['all'] for entry in groups[name]])}**" for name in names]
    lines.append(f"| **all** | {100 * first['chance_all']:.1f} | {' | '.join(cells)} |")
    lines += ["", *_differences(groups), "", *_runs(entries)]
    command = " ".join(["python data/nano/measure.py", *(["--cfg-options", *cfg_options] if cfg_options else [])])
    lines += ["", f"Measured with `{command}` on {_machine()}."]
    return "\n".join(lines)


def _title(name: str, entries: Sequence[Entry], seeds: Sequence[int]) -> str:
    """Title of a variant, with its seeds where it lacks some."""
    own = sorted(entry["seed"] for entry in entries)
    return VARIANTS[name].title + ("" if own == list(seeds) else f" (seed {', '.join(map(str, own))})")


def _spread(values: Sequence[float]) -> str:
    mean = 100 * statistics.fmean(values)
    return f"{mean:.1f} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"


def _differences(groups: dict[str, list[Entry]]) -> list[str]:
    """How much more than the first variant each of the others answers right, seed by seed."""
    base, *others = groups
    lines = []
    for name in others:
        reference = {entry["seed"]: entry["all"] for entry in groups[base]}
        gains = [100 * (e["all"] - reference[e["seed"]]) for e in groups[name] if e["seed"] in reference]
        if gains:
            each = ", ".join(f"{gain:+.1f}" for gain in gains)
            lines.append(
                f"- {VARIANTS[name].title} minus {VARIANTS[base].title}, all kinds, seed by seed: {each} points"
            )
    return lines


def _runs(entries: Sequence[Entry]) -> list[str]:
    lines = ["| run | all kinds, % | stage 1, s | stage 2, s | evaluation, s |", "|---|---|---|---|---|"]
    for entry in entries:
        seconds = " | ".join(f"{entry['seconds'][step]:.0f}" for step in ("stage1", "stage2", "evaluation"))
        lines.append(
            f"| {VARIANTS[entry['variant']].title}, seed {entry['seed']} | {100 * entry['all']:.1f} | {seconds} |"
        )
    return lines


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "xtuner"))
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {packages}"


def write_report(path: Path, text: str) -> None:
    """Put the report between the marks of a Markdown file; the marks are added at the end where there are none."""
    old = path.read_text() if path.is_file() else "# Results of the miniature\n"
    if BEGIN not in old or END not in old:
        old = f"{old.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, rest = old.split(BEGIN, 1)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}")


def is_finished(entries: Sequence[Entry], variant: Variant, seed: int, settings: Settings) -> bool:
    """Whether the results hold this very run."""
    wanted = run_fingerprint(variant, seed, settings)
    return any(entry["fingerprint"] == wanted for entry in entries)


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run (default: %(default)s)")
    parser.add_argument(
        "--boxes", choices=("proposals", "exact", "none"), default="proposals", help="of the evaluation"
    )
    parser.add_argument("--fresh", action="store_true", help="repeat runs that are finished")
    parser.add_argument("--report-only", action="store_true", help="only write the report from the results")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="for both stages' configs")
    parser.add_argument("--results", type=Path, default=NANO / "results.json", help="default: data/nano/results.json")
    parser.add_argument("--report", type=Path, default=NANO / "RESULTS.md", help="default: data/nano/RESULTS.md")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "work_dirs" / "nano", help="default: work_dirs/nano")
    return parser.parse_args()


def main() -> None:
    """Measure what is not measured yet, and write the report."""
    arguments = parse_arguments()
    settings = Settings(
        arguments.work_dir, arguments.threads, arguments.fresh, tuple(arguments.cfg_options), arguments.boxes
    )
    if not arguments.report_only:
        run_all({"data": lambda note: make_data(note, settings.folder / "data.log")}, 1)
        entries = [] if arguments.fresh else load_entries(arguments.results)
        tasks: dict[str, Callable[[Note], None]] = {}
        for seed in arguments.seeds:
            for variant in (VARIANTS[name] for name in arguments.variants):
                if not is_finished(entries, variant, seed, settings):
                    name = f"{variant.name} {seed}"
                    tasks[name] = partial(measure_one, variant, seed, settings, arguments.results)
        print(f"{len(tasks)} of {len(arguments.seeds) * len(arguments.variants)} runs to do")
        run_all(tasks, arguments.jobs)
    every = [entry for entry in load_entries(arguments.results) if entry["boxes"] == settings.boxes]
    entries = [entry for entry in every if is_finished([entry], VARIANTS[entry["variant"]], entry["seed"], settings)]
    if not entries:
        sys.exit(
            f"{arguments.results} has no runs of the present configs, data, weights and options (boxes: "
            f"{settings.boxes}); {len(every)} of others"
        )
    if len(entries) < len(every):
        print(f"{len(every) - len(entries)} runs of other settings, data, weights or options are left out")
    text = report(entries, settings.cfg_options)
    write_report(arguments.report, text)
    print(f"{text}\n\nwrote {arguments.report}")


if __name__ == "__main__":
    try:
        main()
    except RunError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on where this one ended")
