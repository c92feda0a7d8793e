"""Public names mean one thing: no two modules of the package define the same one."""

import ast
from collections import defaultdict
from collections.abc import Iterator

from tests.house.source import compare, package_files

SHARED = {"AFTER", "HELP", "CONFIG", "add_arguments", "parse_arguments", "run", "main"}
"""Names of every command and benchmark: the one who starts them finds these in each of their modules."""
COMMANDS = ("mg_llava/commands/", "mg_llava/profiling/", "mg_llava/experiments/", "mg_llava/evaluation/command.py")
STAND_INS = "mg_llava/hf/mmengine_stub.py"
"""Has the names that it stands in for."""


def defined_names(tree: ast.Module) -> Iterator[str]:
    """Public classes, functions, constants and type aliases that a module defines at its top level."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            inner = (part for target in targets for part in ast.walk(target))
            names = [part.id for part in inner if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]
        else:
            continue
        yield from (name for name in names if not name.startswith("_"))


def test_top_level_names_are_found() -> None:
    text = "A, _B = 1, 2\nC: int = 3\nd[E] = f.g = 4\ndef h():\n    I = 5\nclass J:\n    k = 6\n"
    assert list(defined_names(ast.parse(text))) == ["A", "C", "h", "J"]


def test_no_public_name_means_two_things() -> None:
    places = defaultdict(set)
    for file in package_files().values():
        for name in defined_names(file.tree):
            if file.path != STAND_INS and not (name in SHARED and file.path.startswith(COMMANDS)):
                places[name].add(file.path)
    found = {f"{name}: {', '.join(sorted(paths))}" for name, paths in places.items() if len(paths) > 1}
    compare(found, set(), "A public name is defined in one module")
