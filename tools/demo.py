"""The whole project on its embedded default: data, both stages with XTuner's training, evaluation, one question.

Trains the full model and, for comparison, the low-resolution encoder alone with the same budget, side by side: the
grid of experiments in data/nano/demo_grid.py. Steps that are finished are not repeated; `make demo` runs this.

Examples:
    python tools/demo.py
    python tools/demo.py --seed 1 --work-dir work_dirs/second

Exit status: 0 everything worked, 1 a step failed, 130 stopped (the same command goes on from there).
"""

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path

from mmengine.logging import MMLogger

ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "data" / "nano"
sys.path[:0] = [str(ROOT), str(NANO)]

import benchmarks  # noqa: E402
import evaluate  # noqa: E402

from mg_llava.experiments.command import run_grid  # noqa: E402
from mg_llava.experiments.grid import read_grid  # noqa: E402
from mg_llava.experiments.steps import Run  # noqa: E402
from mg_llava.work.interrupts import interrupt_at_termination, run_main  # noqa: E402

QUESTION_KIND = "leftmost"


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "work_dirs" / "demo", help="default: work_dirs/demo")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="for all trainings")
    return parser.parse_args()


def ask(run: Run, picture: Path, question: str, out: Path) -> str:
    """Ask a run's model one question, with boxes found in the picture, and draw the answer."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    MMLogger.get_instance("demo", log_level="WARNING")
    from mg_llava.detection.proposals import ConnectedComponentProposals
    from mg_llava.inference import Predictor, draw_answer

    training = run.steps[-2]
    predictor = Predictor.from_pretrained(
        training.config, training.done["product"], proposer=ConnectedComponentProposals()
    )
    answer = predictor.predict(picture, question)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_answer(picture, question, answer).save(out)
    return answer.text


def main() -> int:
    """Run all steps."""
    arguments = parse_arguments()
    interrupt_at_termination()
    begin, folder = time.monotonic(), arguments.work_dir.resolve()
    os.chdir(ROOT)  # the configs' paths are relative to it
    grid = read_grid(NANO / "demo_grid.py").only((), [arguments.seed]).with_options(arguments.cfg_options)
    print("1. Pictures with handwritten digits, questions, boxes")
    print("2. Both stages with XTuner's training, then the held-out questions; logs in", folder, flush=True)
    runs, failures = run_grid(grid, folder, arguments.jobs, 1, lambda text: print(f"  {text}", flush=True))
    if failures:
        return 1
    print("\n3. Right answers to held-out questions, in % (digits and backgrounds that training never saw)\n")
    results = [json.loads(Path(run.steps[-1].done["product"]).read_text())["benchmarks"] for run in runs]
    columns = {run.row.title: result for run, result in zip(runs, results, strict=True)}
    print(evaluate.format_table(columns))
    print("\nThe same pictures in the formats of public benchmarks, scored by their rules\n")
    print(evaluate.format_benchmarks(columns))
    lines = benchmarks.load_lines([benchmarks.GENERATED / "heldout.jsonl"])
    chosen = next(line for line in lines if line["kind"] == QUESTION_KIND)
    picture = benchmarks.GENERATED / "images" / chosen["image"]
    print(f"\n4. One question about {picture.relative_to(ROOT)}\n", flush=True)
    out = folder / "answer.png"
    text = ask(runs[-1], picture, chosen["question"], out)
    print(f"Question: {chosen['question']}\nAnswer:   {text}\nRight:    {chosen['answer']}")
    print(f"\nPicture, boxes, question and answer: {out}")
    print(f"The demo took {(time.monotonic() - begin) / 60:.1f} minutes.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(run_main(main, "the same command goes on where this one ended"))
    except (RuntimeError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
