"""Time and memory of work in processes of its own, so that one measurement does not disturb the next."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

MB = 1e6


def run_child(function: str, *arguments: Any) -> dict[str, Any]:
    """Call a function in a new interpreter.

    Args:
        function: Dotted name; it returns a dict of plain values.
        *arguments: Plain values.

    Raises:
        RuntimeError: The function failed.
    """
    module, name = function.rsplit(".", 1)
    code = f"import json, sys, {module} as m; print(json.dumps(m.{name}(*json.loads(sys.argv[1]))))"
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": _search_path()})
    if done.returncode:
        raise RuntimeError(f"{function} failed with status {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory() -> float:
    """Largest resident memory of this process so far, MB; mapped files are part of it."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024 / MB


def memory_of(processes: Iterable[int]) -> dict[str, float]:
    """Memory that processes hold together, MB, pages that they share counted once.

    Returns:
        ``own``, which cannot be given back; and ``mapped``, parts of files, which the system drops when it needs room.
    """
    own = mapped = 0
    for process in processes:
        with open(f"/proc/{process}/smaps_rollup") as file:
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in file if line.endswith("kB\n")}
        own += sizes["Pss_Anon"] + sizes["Pss_Shmem"]
        mapped += sizes["Pss_File"]
    return {"own": own * 1024 / MB, "mapped": mapped * 1024 / MB}


def _search_path() -> str:
    """The children import what this process imports."""
    return os.pathsep.join(path for path in sys.path if path)
