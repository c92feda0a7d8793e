"""Evaluate a checkpoint on any set of benchmarks: scores by every rule, a table, results.json, an HTML report.

Interrupted runs are continued. Several GPUs (or CPU processes) share the work with torchrun. Several values of
--boxes or --fusion make an ablation: differences to the first one, with paired bootstrap intervals.

Examples:
    mg-llava evaluate --list --data data/eval
    mg-llava evaluate CONFIG.py --checkpoint iter_1000.pth --benchmarks mmbench_dev_en,pope --data data/eval
    mg-llava evaluate FOLDER --benchmarks pope
    torchrun --nproc_per_node 8 -m mg_llava evaluate CONFIG.py --checkpoint ... --benchmarks textvqa,gqa
    mg-llava evaluate CONFIG.py --checkpoint ... --benchmarks pope --boxes detected,none,jitter=0.1
    mg-llava evaluate CONFIG.py --checkpoint ... --benchmarks mmstar --fusion on,off
    mg-llava evaluate CONFIG.py --checkpoint ... --benchmarks mmbench_dev_en=/data/MMBench_DEV_EN.tsv

Exit status: 0 evaluated (questions without an answer are in the table), 1 something could not be read or does not fit,
2 wrong arguments, 130 stopped.
"""

import argparse
from pathlib import Path

from mg_llava.evaluation import command


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="config of the training, Hugging Face folder of ours, or hub id")
    parser.add_argument("--benchmarks", default="", help="names with commas between them; NAME=FILE: your file")
    parser.add_argument("--data", type=Path, default=Path("data/eval"), help="root of all data (default: data/eval)")
    parser.add_argument("--list", action="store_true", help="show which benchmarks are there and what others miss")
    command.add_arguments(parser)
    arguments = parser.parse_args()
    if not arguments.list and not (arguments.model and arguments.benchmarks):
        parser.error("a model and --benchmarks are needed (or --list)")
    return arguments


def main() -> int:
    """List, or evaluate."""
    arguments = parse_arguments()
    names = [name.strip() for name in arguments.benchmarks.split(",") if name.strip()]
    if arguments.list:
        from mg_llava.evaluation.catalog import format_list

        print(format_list(arguments.data, names or None))
        return 0
    return command.run(arguments, names)
