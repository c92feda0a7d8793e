"""Measure a part of the project beside the plain way; prints a table and, as the last line, one JSON object.

The benchmarks are the modules of mg_llava/benchmarks. The JSON has the keys benchmark, speedup, memory_ratio and error
where they apply, and more.

Examples:
    python tools/benchmark.py --help
    python tools/benchmark.py boxstore --records 100000
    python tools/benchmark.py data --help

Exit status: 0 measured, 1 a measurement failed, 2 wrong arguments.
"""

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> int:
    """Run one benchmark."""
    import mg_llava.benchmarks

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    names = [m.name for m in pkgutil.iter_modules(mg_llava.benchmarks.__path__) if not m.name.startswith("_")]
    # Only the one asked for is imported, so that the others' packages are not needed.
    asked = [name for name in names if name in sys.argv[1:2]] or names
    modules = {name: importlib.import_module(f"mg_llava.benchmarks.{name}") for name in asked}
    for name, module in modules.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.HELP))
    arguments = parser.parse_args()
    try:
        result = modules[arguments.benchmark].run(arguments)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"benchmark": arguments.benchmark, **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
