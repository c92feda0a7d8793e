"""See what the model sees: pictures on their canvas, kept and dropped boxes, and the tokens, of samples of a config.

Writes into --out a PNG for each sample, samples.json (ids, tokens with flags, boxes with what became of them) and,
with --html, index.html. Only the data set of the config is built, not the model; no screen is needed.

Examples:
    mg-llava browse configs/mg_llava_nano_instruct.py --index 0 5 7 --out work_dirs/browse
    mg-llava browse configs/mg_llava_nano_instruct.py --ids stage2-00003 --out work_dirs/browse
    mg-llava browse CONFIG.py --random 50 --source llava_665k --html --out work_dirs/browse

Exit status: 0 all samples were drawn, 1 some were not or the data set cannot be read, 2 wrong arguments.
"""

import argparse
import contextlib
import sys
from pathlib import Path

from mg_llava.work.numbers import whole


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config of a training")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--index", type=int, nargs="+", help="numbers of samples, in --source or in the whole data set")
    which.add_argument("--ids", nargs="+", help="ids of records")
    which.add_argument("--random", type=whole(), metavar="N", help="N samples drawn with --seed")
    parser.add_argument("--source", help="name of one source of a mixture")
    parser.add_argument("--seed", type=whole(0), default=0, help="for --random (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--html", action="store_true", help="write index.html as well")
    parser.add_argument("--font", type=Path, help="TrueType file, for scripts that the default font does not have")
    return parser.parse_args()


def browse(arguments: argparse.Namespace) -> list[str]:
    """Draw the samples; returns a message for each that could not be drawn."""
    from mg_llava.inspection.browse.run import SampleChooser, load_dataset, write_samples

    dataset, has_box_tokens = load_dataset(arguments.config)
    chooser = SampleChooser(dataset, arguments.source)
    if arguments.index is not None:
        choices, problems = chooser.by_position(arguments.index)
    elif arguments.ids is not None:
        choices, problems = chooser.by_id(arguments.ids, watch)
    else:
        choices, problems = chooser.at_random(arguments.random, arguments.seed)
    title, font = f"{arguments.config}: what the model sees", arguments.font
    return write_samples(choices, arguments.out, watch, title, arguments.html, font, has_box_tokens, problems)


def watch(items, total: int, unit: str):
    """A progress bar."""
    from tqdm import tqdm

    return tqdm(items, total=total, unit=f" {unit}", file=sys.stderr, delay=1)


def main() -> int:
    """Draw, and say what is missing."""
    arguments = parse_arguments()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the log; stdout is for the result
            problems = browse(arguments)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"wrote {arguments.out / ('index.html' if arguments.html else 'samples.json')}")
    return 1 if problems else 0
