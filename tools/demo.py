"""The whole project on its embedded default: data, both stages with `xtuner train`, evaluation, one question.

Trains the full model and, for comparison, the low-resolution encoder alone with the same budget, side by side. Steps
that are finished are not repeated; `make demo` runs this.

Examples:
    python tools/demo.py
    python tools/demo.py --fresh --seed 1

Exit status: 0 everything worked, 1 a step failed, 130 stopped (the same command goes on from there).
"""

import argparse
import logging
import os
import sys
import time
from functools import partial
from pathlib import Path

from mmengine.logging import MMLogger

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "data" / "nano")]

import evaluate  # noqa: E402
import runs  # noqa: E402
from jobs import RunError, run_all  # noqa: E402

SHOWN = ("low_only", "full")
QUESTION_KIND = "leftmost"


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="repeat steps that are finished")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "work_dirs" / "demo", help="default: work_dirs/demo")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="for all trainings")
    return parser.parse_args()


def ask(checkpoint: Path, picture: Path, question: str, out: Path) -> str:
    """Ask the full model one question, with boxes found in the picture, and draw the answer."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    MMLogger.get_instance("demo", log_level="WARNING")
    from mg_llava.detection.proposals import ConnectedComponentProposals
    from mg_llava.inference import Predictor, draw_answer

    config = ROOT / runs.VARIANTS["full"].config("stage2")
    predictor = Predictor.from_config(config, checkpoint, proposer=ConnectedComponentProposals())
    answer = predictor.predict(picture, question)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_answer(picture, question, answer).save(out)
    return answer.text


def main() -> None:
    """Run all steps."""
    arguments = parse_arguments()
    begin = time.monotonic()
    os.chdir(ROOT)  # the configs' paths are relative to it
    settings = runs.Settings(arguments.work_dir.resolve(), 1, arguments.fresh, tuple(arguments.cfg_options))
    print("1. Pictures with handwritten digits, questions, boxes", flush=True)
    run_all({"data": lambda note: runs.make_data(note, settings.folder / "data.log")}, 1)
    print("2. Both stages with `xtuner train`, then the held-out questions; logs in", settings.folder, flush=True)
    tasks = {name: partial(runs.train_and_evaluate, runs.VARIANTS[name], arguments.seed, settings) for name in SHOWN}
    outcomes = run_all(tasks, arguments.jobs)
    print("\n3. Right answers to held-out questions, in % (digits and backgrounds that training never saw)\n")
    columns = {runs.VARIANTS[name].title: outcomes[name].result for name in SHOWN}
    print(evaluate.format_table(columns))
    print("\nThe same pictures in the formats of public benchmarks, scored by their rules\n")
    print(evaluate.format_benchmarks(columns))
    chosen = next(item for item in evaluate.load_questions() if item["kind"] == QUESTION_KIND)
    picture = evaluate.GENERATED / "images" / chosen["image"]
    print(f"\n4. One question about {picture.relative_to(ROOT)}\n", flush=True)
    out = settings.folder / "answer.png"
    text = ask(outcomes["full"].checkpoint, picture, chosen["question"], out)
    print(f"Question: {chosen['question']}\nAnswer:   {text}\nRight:    {chosen['answer']}")
    print(f"\nPicture, boxes, question and answer: {out}")
    print(f"The demo took {(time.monotonic() - begin) / 60:.1f} minutes.")


if __name__ == "__main__":
    try:
        main()
    except (RunError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where this one ended", file=sys.stderr)
        sys.exit(130)
