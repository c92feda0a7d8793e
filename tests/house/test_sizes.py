"""How long files and functions may be, and how much a constructor may take."""

import ast

from tests.house.source import File, compare, files

FILE_LINES = 350
FUNCTION_LINES = 60
ARGUMENTS = 15


def count_lines(node: ast.stmt) -> int:
    """Lines of a function with its docstring, without its decorators."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def count_arguments(node: ast.ClassDef) -> int:
    """Arguments of a class's ``__init__``, ``*args`` and ``**kwargs`` included, or its fields where it is a record."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            given = item.args
            named = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs) - 1
            return named + (given.vararg is not None) + (given.kwarg is not None)
    heads = [ast.unparse(head) for head in (*node.decorator_list, *node.bases)]
    if not any("dataclass" in head or head.endswith("NamedTuple") for head in heads):
        return 0
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    return sum("ClassVar" not in ast.unparse(item.annotation) for item in fields)


def test_no_file_is_too_long() -> None:
    found = {file.path for file in files().values() if file.text.count("\n") > FILE_LINES}
    compare(found, set(), f"No file is longer than {FILE_LINES} lines")


def test_no_function_is_too_long() -> None:
    found = {
        f"{file.path}::{name}"
        for file in files().values()
        for name, node in file.functions()
        if count_lines(node) > FUNCTION_LINES
    }
    compare(found, set(), f"No function is longer than {FUNCTION_LINES} lines")


def test_no_constructor_takes_too_much() -> None:
    found = {
        f"{file.path}::{name}"
        for file in files().values()
        for name, node in file.classes()
        if count_arguments(node) > ARGUMENTS
    }
    compare(found, set(), f"No constructor takes more than {ARGUMENTS} arguments: group them in values")


def test_sizes_are_counted() -> None:
    text = (
        "class A:\n    def __init__(self, a, *b, c, **d):\n        pass\n    def f(self):\n        def g():\n"
        "            pass\n"
        "@dataclass(frozen=True)\nclass B:\n    x: int\n    y: ClassVar[int] = 2\n    z: int = 0\n"
    )
    file = File("mg_llava/a.py", "mg_llava.a", text, ast.parse(text))
    assert {name: count_lines(node) for name, node in file.functions()} == {"A.__init__": 2, "A.f": 3, "A.f.g": 2}
    assert {name: count_arguments(node) for name, node in file.classes()} == {"A": 4, "B": 2}
