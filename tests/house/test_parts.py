"""The table of a system's parts is the only list of them."""

import ast

from tests.house.source import compare, package_files

KEYS = {"visual_encoder", "visual_encoder_aux", "fuse_module", "bbox_projector"}
LISTS: set[str] = {
    "mg_llava/conversion/published.py",  # shapes of published checkpoints, which come without a config
}
"""Files that list keys of parts all the same; the list only gets shorter."""


def listed(tree: ast.AST) -> set[str]:
    """Keys of parts that stand together in a literal."""
    found: set[str] = set()
    for node in ast.walk(tree):
        items = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        names = {item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)}
        if len(names & KEYS) > 1:
            found |= names & KEYS
    return found


def test_systems_alone_list_parts() -> None:
    found = {
        file.path
        for file in package_files().values()
        if not file.path.startswith("mg_llava/models/systems/") and listed(file.tree)
    }
    compare(found, LISTS, "Ask type(system).parts, or the class of a config's system, instead of listing parts")


def test_lists_are_found() -> None:
    assert listed(ast.parse('A = ("llm", "fuse_module", "bbox_projector")')) == {"fuse_module", "bbox_projector"}
    assert listed(ast.parse('A = {"visual_encoder": 1, "fuse_module": 2}')) == {"visual_encoder", "fuse_module"}
    assert not listed(ast.parse('A = getattr(model, "fuse_module"), "projector"'))
