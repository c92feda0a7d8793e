"""The source files as the rules of the house see them: modules, their imports, functions and constructors."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("mg_llava", "configs", "tools", "data/nano")
"""Product code."""


@dataclass(frozen=True)
class Import:
    """One module that a file imports.

    Attributes:
        line: Where.
        name: The module, absolute: ``"mg_llava.data.collate"``.
        deferred: Not run when the file is imported: inside a function, or for type checkers alone.
    """

    line: int
    name: str
    deferred: bool


@dataclass(frozen=True)
class File:
    """A Python file of the product.

    Attributes:
        path: Below the repository, with forward slashes.
        module: Dotted name, which for a file outside the package is made of its path.
        text: Its source.
        tree: The same, parsed.
    """

    path: str
    module: str
    text: str
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        """Whether it is the ``__init__`` of a folder."""
        return self.path.endswith("/__init__.py")

    def imports(self) -> list[Import]:
        """Every module of an import statement or of ``import_module("...")``."""
        return [found for node in ast.iter_child_nodes(self.tree) for found in self._imports(node, False)]

    def _imports(self, node: ast.AST, deferred: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = self._absolute(node)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(node.lineno, inner if inner in modules() else base, deferred)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield Import(node.lineno, node.args[0].value, deferred)
        later = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        later |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from self._imports(child, later)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.module.split(".") if self.is_package else self.module.split(".")[:-1]
        package = package[: len(package) - node.level + 1]
        return ".".join([*package, node.module] if node.module else package)

    def functions(self) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        """Functions and methods with their names below the file."""
        yield from _walk(self.tree, "", ast.FunctionDef | ast.AsyncFunctionDef)

    def classes(self) -> Iterator[tuple[str, ast.ClassDef]]:
        """Classes with their names below the file."""
        yield from _walk(self.tree, "", ast.ClassDef)


def _walk(node: ast.AST, prefix: str, kind: type) -> Iterator:
    for child in ast.iter_child_nodes(node):
        inner = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{prefix}{child.name}."
            if isinstance(child, kind):
                yield inner[:-1], child
        yield from _walk(child, inner, kind)


@cache
def paths() -> tuple[Path, ...]:
    """Python files of the product."""
    found = (file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py")))
    return tuple(file for file in found if not {"generated", "__pycache__"} & set(file.parts))


@cache
def modules() -> frozenset[str]:
    """Dotted names of the files."""
    return frozenset(map(_module_of, paths()))


@cache
def files() -> dict[str, File]:
    """Files of the product by module."""
    found = {}
    for path in paths():
        text, module = path.read_text(), _module_of(path)
        found[module] = File(path.relative_to(ROOT).as_posix(), module, text, ast.parse(text))
    return found


def package_files() -> dict[str, File]:
    """Files of the package ``mg_llava`` by module."""
    return {name: file for name, file in files().items() if file.path.startswith("mg_llava/")}


def _module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def ancestors(module: str) -> list[str]:
    """Packages that are imported before a module, outermost first."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def compare(found: set[str], known: set[str], rule: str) -> None:
    """Assert that exactly the known offenders break a rule: new ones are refused, mended ones leave the list."""
    new, mended = sorted(found - known), sorted(known - found)
    assert not new, f"{rule}. New:\n" + "\n".join(new)
    assert not mended, "No longer so: take these out of the list in this test:\n" + "\n".join(mended)
