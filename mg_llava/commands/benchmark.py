"""Measure a part of the project beside the plain way; prints a table and, as the last line, one JSON object.

The benchmarks are the modules of mg_llava/profiling. The JSON has the keys benchmark, speedup, memory_ratio and error
where they apply, and more.

Examples:
    mg-llava benchmark --help
    mg-llava benchmark all --quick                                 # every table, in minutes
    mg-llava benchmark boxes
    mg-llava benchmark launches --config configs/mg_llava_vicuna7b_pretrain.py
    mg-llava benchmark compare --llm vicuna7b --vision paper --device cuda --batch-size 16
    mg-llava benchmark train --boxes 100 10                        # encoders of the paper on a CPU
    mg-llava benchmark train --llm vicuna7b --device cuda --batch-size 16 --steps 10 --warmup 3 --alone
    mg-llava benchmark packing                                     # wasted positions, packed and padded
    mg-llava benchmark scaling --llm phi3-mini --vision paper --device cuda
    mg-llava benchmark data --help

Exit status: 0 measured, 1 a measurement failed, 2 wrong arguments.
"""

import argparse
import ast
import importlib
import json
import sys
from pathlib import Path

from mg_llava import profiling


def read_help(file: Path) -> str:
    """The text of ``HELP`` in a module, without importing it."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "HELP":
            return ast.literal_eval(node.value)
    raise ValueError(f"{file} has no HELP")


def main() -> int:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    modules = {}
    for file in sorted(Path(profiling.__file__).parent.glob("[!_]*.py")):
        name, words = file.stem.replace("_", "-"), read_help(file)
        command = commands.add_parser(name, help=words, description=words)
        if name in sys.argv[1:2]:  # only this one is imported: others may need packages that are not there
            modules[name] = importlib.import_module(f"mg_llava.profiling.{file.stem}")
            modules[name].add_arguments(command)
    arguments = parser.parse_args()
    try:
        result = modules[arguments.benchmark].run(arguments)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"benchmark": arguments.benchmark, **result}))
    return 0
