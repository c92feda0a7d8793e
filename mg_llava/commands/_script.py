"""Run a script of XTuner's as a command is run: ``python -m mg_llava.commands._script FILE ...``."""

import os
import runpy
import sys

from mg_llava.work.interrupts import end_at_once, run_main

AFTER = "with --resume and the newest checkpoint the same command goes on"


def main() -> int:
    """Be the program, a file or a module, that the first argument names."""
    del sys.argv[0]
    if not os.path.isfile(sys.argv[0]):
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        return 0
    sys.path.insert(0, os.path.dirname(sys.argv[0]))  # as Python does
    runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    end_at_once()
    sys.exit(run_main(main, AFTER))
