"""See mg_llava/experiments/command.py."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mg_llava.experiments import command


def main() -> int:
    """Train, evaluate, report."""
    parser = argparse.ArgumentParser(description=command.HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_arguments(parser)
    return command.run(parser.parse_args())


if __name__ == "__main__":
    from mg_llava.work.interrupts import run_main

    sys.exit(run_main(main))
