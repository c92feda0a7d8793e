"""Train, evaluate and compare a grid of configs and seeds; see mg_llava/experiments/command.py."""

import argparse

from mg_llava.experiments import command


def main() -> int:
    """Train, evaluate, report."""
    parser = argparse.ArgumentParser(description=command.HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_arguments(parser)
    return command.run(parser.parse_args())
