"""``mg-llava COMMAND ...``: a command is a module of this folder, which reads its arguments from ``sys.argv``.

Its name is that of the file, its text in the list is the first line of the file, and it is imported when it is asked
for.
"""

import ast
import importlib
import sys
from pathlib import Path

from mg_llava.work.interrupts import run_main


def list_commands() -> dict[str, str]:
    """The first line of each command's text, by its name."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    texts = {file.stem.replace("_", "-"): ast.get_docstring(ast.parse(file.read_text())) or "" for file in files}
    return {name: text.partition("\n")[0] for name, text in texts.items()}


def main() -> int:
    """Run the command that ``sys.argv`` names; its exit status, or 2 where there is no such command."""
    commands = list_commands()
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in commands:
        is_help = name in ("-h", "--help", "help")
        out = sys.stdout if is_help else sys.stderr
        if not is_help and name:
            import difflib

            near = difflib.get_close_matches(name, commands, 1)
            out.write(f"error: unknown command {name!r}{f'; did you mean {near[0]}?' if near else ''}\n\n")
        width = max(map(len, commands))
        lines = [f"  {name:{width}}  {text}" for name, text in commands.items()]
        out.write("\n".join(["mg-llava COMMAND ...; each command has --help", "", *lines, ""]))
        return 0 if is_help else 2
    sys.argv = [f"mg-llava {name}", *sys.argv[2:]]
    return run(name)


def run(name: str) -> int:
    """Run a command with the arguments in ``sys.argv``; its exit status."""
    command = importlib.import_module(f"mg_llava.commands.{name.replace('-', '_')}")
    after = getattr(command, "AFTER", None)  # what to do after Ctrl-C
    return run_main(command.main) if after is None else run_main(command.main, after)
