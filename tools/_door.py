"""The way from a file of this folder to its command, in a checkout that need not be installed."""

import sys
from pathlib import Path


def open_door(name: str) -> None:
    """Be the command ``mg-llava NAME``, and end with its exit status."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from mg_llava.work.interrupts import end_at_once

    end_at_once()  # before all other imports
    from mg_llava import commands

    sys.exit(commands.run(name))
