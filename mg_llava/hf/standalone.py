"""Copies the model's code into a Hugging Face folder, so that it loads without this package, XTuner and mmengine.

transformers takes such code as single files beside ``config.json`` that import each other by ``from .name import``.
The copies are made from the package by rule, import line by import line, and never edited:

* modules of this package become files in one folder (``mg_llava.data.inputs`` is ``data_inputs.py``);
* mmengine and the registry become the small module ``mg_llava.hf.mmengine_stub``;
* what a function imports beyond the packages that are always needed is imported by name when the function runs, where
  transformers does not look for it;
* the files that transformers opens first name all others, because it copies no more than those.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mg_llava import __version__

_PACKAGE = "mg_llava"
STUB = f"{_PACKAGE}.hf.mmengine_stub"
ENTRIES = {
    "AutoConfig": ("configuration", "MGLLaVAConfig"),
    "AutoModel": ("modeling", "MGLLaVAForConditionalGeneration"),
    "AutoModelForVision2Seq": ("modeling", "MGLLaVAForConditionalGeneration"),
    "AutoModelForImageTextToText": ("modeling", "MGLLaVAForConditionalGeneration"),
    "AutoImageProcessor": ("image_processing", "MGLLaVAImageProcessor"),
    "AutoProcessor": ("processing", "MGLLaVAProcessor"),
}
"""For each Auto class the module of ``mg_llava.hf`` and the class in it."""
REPLACED = {"mmengine.logging", "mmengine.model", f"{_PACKAGE}.registry"}
"""Modules that the stub stands for."""
NEEDED = {"torch", "torchvision", "transformers", "numpy", "PIL", "timm", "safetensors"}
"""Packages that must be there to use the model."""


def auto_map(*names: str) -> dict[str, str]:
    """Where transformers finds the classes of some Auto classes in the folder."""
    return {name: f"{_file_name(f'{_PACKAGE}.hf.{ENTRIES[name][0]}')}.{ENTRIES[name][1]}" for name in names}


def copy_sources(folder: Path, modules: set[str], prompts: Iterable[str] = ()) -> list[str]:
    """Write the code into a folder.

    Args:
        folder: The folder.
        modules: Modules that register the parts of the model, which the code finds by their names.
        prompts: Those that register the parts of its prompts.

    Returns:
        Names of the files, sorted.

    Raises:
        ValueError: A module imports what cannot be there.
    """
    written = []
    entries = {f"{_PACKAGE}.hf.{module}" for module, _ in ENTRIES.values()}
    registering = {f"{_PACKAGE}.hf.modeling": modules, f"{_PACKAGE}.hf.processing": set(prompts)}
    sources = {name: _Source.read(name) for name in _closure(entries.union(*registering.values()))}
    for name, source in sources.items():
        brought = registering.get(name, set())
        also = sorted(_closure({name} | brought) - {name}) if name in entries else []
        file = folder / f"{_file_name(name)}.py"
        file.write_text(source.rewritten(also))
        written.append(file.name)
    return sorted(written)


def _closure(modules: set[str]) -> set[str]:
    """Modules of this package that some need, themselves included."""
    found: set[str] = set()
    waiting = set(modules)
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= _Source.read(name).needs - found
    return found


def _file_name(module: str) -> str:
    """Name of a module's copy, without ``.py``."""
    entries = {f"{_PACKAGE}.hf.{name}": f"{name}_{_PACKAGE}" for name, _ in ENTRIES.values()}
    return entries.get(module) or module.removeprefix(f"{_PACKAGE}.").replace(".", "_")


@dataclass
class _Source:
    """The source of one module, with its imports."""

    name: str
    text: str
    imports: list[tuple[ast.stmt, bool]] = field(default_factory=list)
    """Import statements, and whether each stands at the top of the module."""

    @classmethod
    def read(cls, name: str) -> "_Source":
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or spec.submodule_search_locations is not None:
            raise ValueError(f"{name} is no module but a package; import from the module that has what is needed")
        source = cls(name, Path(spec.origin).read_text())
        tree = ast.parse(source.text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                source.imports.append((node, node in tree.body))
        return source

    @property
    def needs(self) -> set[str]:
        """Modules of this package that are imported when this one is."""
        modules = {self._target(node) for node, at_top in self.imports if at_top and isinstance(node, ast.ImportFrom)}
        return {module for module in modules if module.split(".")[0] == _PACKAGE}

    def _target(self, node: ast.ImportFrom) -> str:
        """The module that is imported from, absolute, or the one that stands for it."""
        module = node.module or ""
        if node.level:
            base = self.name.split(".")[: -node.level]
            module = ".".join([*base, module] if module else base)
        return STUB if module in REPLACED else module

    def rewritten(self, also: list[str]) -> str:
        """The copy; ``also`` names modules that it shall name although it does not import them."""
        lines = self.text.splitlines()
        nodes = sorted(self.imports, key=lambda pair: -pair[0].lineno)
        for node, at_top in nodes:
            assert node.end_lineno is not None
            indent = lines[node.lineno - 1][: node.col_offset]
            if new := self._statement(node, at_top):
                lines[node.lineno - 1 : node.end_lineno] = [indent + line for line in new]
        preamble = [f"from .{_file_name(name)} import __name__ as _{_file_name(name)}" for name in also]
        first = min((node.lineno for node, at_top in self.imports if at_top), default=len(lines) + 1)
        header = f"# Copied from {_PACKAGE} {__version__} ({self.name}) with its imports rewritten; not to be edited."
        return "\n".join([header, *lines[: first - 1], *preamble, *lines[first - 1 :]]) + "\n"

    def _statement(self, node: ast.stmt, at_top: bool) -> list[str]:
        """Lines in place of an import in the copy; none to leave it."""
        assert isinstance(node, ast.Import | ast.ImportFrom)
        if isinstance(node, ast.ImportFrom):
            module = self._target(node)
            if at_top and module.split(".")[0] == _PACKAGE:
                return [f"from .{_file_name(module)} import {', '.join(map(ast.unparse, node.names))}"]
            wanted = [(alias.asname or alias.name, module, f".{alias.name}") for alias in node.names]
        else:
            wanted = [(alias.asname or alias.name.split(".")[0], alias.name, "") for alias in node.names]
        absent = [entry for entry in wanted if not _is_there(entry[1])]
        if absent and at_top:
            raise ValueError(f"{self.name} imports {absent[0][1]} at its top, which a stand-alone folder cannot have")
        return [f'{name} = __import__("importlib").import_module("{module}"){leaf}' for name, module, leaf in absent]


def _is_there(module: str) -> bool:
    """True for modules of Python and of the packages that are always needed."""
    root = module.split(".")[0]
    return root in NEEDED or root in sys.stdlib_module_names
