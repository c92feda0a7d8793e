"""Draw how a run of the miniature went over how one that reached its recorded accuracy did: CURVES.png, curves.json.

Examples:
    python data/nano/curves.py work_dirs/mg_llava_nano_pretrain work_dirs/mg_llava_nano_instruct --out mine.png
    python data/nano/curves.py STAGE1 STAGE2 --store   # these are the reference from now on

Exit status: 0 drawn, 1 a folder has no log, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
REFERENCE = HERE / "curves.json"
PANELS = {
    "loss": ("loss",),
    "gate": ("gate",),
    "mean norms of tokens": ("low_norm", "high_norm", "box_norm", "text_norm"),
    "gradient norms": ("grad_fuse_module", "grad_projector", "grad_bbox_projector", "grad_llm"),
}
"""Curves of each panel, by its title."""

Curve = dict[str, list[float]]
"""Values by name, and the step of each as ``step``."""


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="WORK_DIR", help="of stage 1, and of stage 2")
    parser.add_argument("--out", type=Path, default=HERE / "CURVES.png", help="default: CURVES.png beside this file")
    parser.add_argument("--store", action="store_true", help="make the runs the reference")
    arguments = parser.parse_args()
    if len(arguments.runs) > 2 or (arguments.store and len(arguments.runs) != 2):
        parser.error("give the work directories of stage 1 and of stage 2")
    return arguments


def read_run(work_dir: Path) -> Curve:
    """What a run logged; where it was resumed, all its starts together.

    Raises:
        FileNotFoundError: It logged nothing.
    """
    lines: dict[int, Mapping[str, float]] = {}
    for file in sorted(work_dir.glob("*/vis_data/scalars.json")):
        lines.update((line["step"], line) for line in map(json.loads, file.read_text().splitlines()))
    if not lines:
        raise FileNotFoundError(f"{work_dir} has no */vis_data/scalars.json; give the --work-dir of `xtuner train`")
    wanted = {name for names in PANELS.values() for name in names}
    found: Curve = {"step": sorted(lines)}  # type: ignore[dict-item]
    for name in sorted(wanted & set(lines[max(lines)])):
        found[name] = [float(f"{lines[step].get(name, float('nan')):.4g}") for step in sorted(lines)]
    return found


def draw(reference: Sequence[Curve], runs: Sequence[Curve], path: Path) -> None:
    """A row of panels for each stage; thin lines for the reference, thick ones for the runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.6), layout="constrained")
    rows = figure.subplots(2, len(PANELS), squeeze=False)
    for stage, row in enumerate(rows):
        for axes, (title, names) in zip(row, PANELS.items(), strict=True):
            for number, name in enumerate(names):
                for known, width, style in ((reference, 1.2, "-"), (runs, 2.4, ":")):
                    if stage < len(known) and name in known[stage]:
                        label = name if known is reference else None
                        steps, values = known[stage]["step"], known[stage][name]
                        axes.plot(steps, values, style, color=f"C{number}", linewidth=width, label=label)
            axes.set_title(f"stage {stage + 1}: {title}", fontsize=10)
            axes.grid(alpha=0.25)
            if title == "gradient norms":
                axes.set_yscale("log")
            if len(names) > 1:
                axes.legend(frameon=False, fontsize=8)
            axes.set_xlabel("step", fontsize=8)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def main() -> int:
    """Read, store, draw."""
    arguments = parse_arguments()
    try:
        runs = [read_run(work_dir) for work_dir in arguments.runs]
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.store:
        REFERENCE.write_text(json.dumps(runs, separators=(",", ":")) + "\n")
    reference = json.loads(REFERENCE.read_text())
    draw(reference, [] if arguments.store else runs, arguments.out)
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
