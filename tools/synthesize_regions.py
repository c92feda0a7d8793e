"""The command ``mg-llava synthesize``: mg_llava/commands/synthesize.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mg_llava.commands.synthesize import AFTER, main
from mg_llava.work.interrupts import run_main

if __name__ == "__main__":
    sys.exit(run_main(main, AFTER))
