"""Which files may import which: one way through the rooms, no circle of files, nothing heavy or optional early."""

import ast

import pytest

from tests.house.source import ROOT, File, ancestors, compare, files, package_files

# -- one way --------------------------------------------------------------------------------------------------------

GROUND = {"registry", "safe_config", "tokens", "batch", "features", "pieces", "compat", "work", "drawing"}
MIDDLE = {"data", "models"}
UPPER = {
    *("conversion", "detection", "engine", "evaluation", "experiments"),
    *("hf", "inference", "inspection", "planning", "profiling"),
}
ENTRANCES = {"__main__", "commands", "cpu_launch"}
"""Modules of the package that only configs and the command line import."""
LEVELS = {
    **dict.fromkeys(GROUND, 0),
    **dict.fromkeys(MIDDLE, 1),
    **dict.fromkeys(UPPER, 2),
    **dict.fromkeys(ENTRANCES, 3),
    **dict.fromkeys(("configs", "tools", "data/nano"), 4),
}
UPWARD: set[str] = set()
"""Imports against the arrows that are still there; the list only gets shorter."""


def room_of(path: str) -> str:
    """Room of a file: the first part below ``mg_llava``, or the folder beside it."""
    if not path.startswith("mg_llava/"):
        return next(folder for folder in ("configs", "tools", "data/nano") if path.startswith(f"{folder}/"))
    return path.split("/")[1].removesuffix(".py")


def may_import(room: str, other: str) -> bool:
    """Whether a file of one room may import from another one."""
    if room == other or LEVELS[room] > LEVELS[other]:
        return True
    return LEVELS[room] == LEVELS[other] and room not in MIDDLE


def upward_imports() -> set[str]:
    """``file -> module`` for every import against the arrows, lazy ones included."""
    found = set()
    for file in files().values():
        room = room_of(file.path)
        for item in file.imports():
            other = files().get(item.name)
            if other is None or other.path == "mg_llava/__init__.py" or room == "__init__":
                continue
            if not may_import(room, room_of(other.path)):
                found.add(f"{file.path} -> {item.name}")
    return found


def test_every_room_has_its_level() -> None:
    rooms = {room_of(file.path) for file in files().values()}
    assert rooms - {"__init__"} <= set(LEVELS), "a new room needs its place in LEVELS"


def test_imports_point_one_way() -> None:
    compare(
        upward_imports(),
        UPWARD,
        "Imports point one way: tools, configs -> rooms of use -> models | data -> work, drawing, ground",
    )


def test_the_rule_sees_lazy_and_relative_imports() -> None:
    text = "from ..inference import predictor\ndef f():\n    from mg_llava.data import collate as c\n"
    file = File("mg_llava/models/made_up.py", "mg_llava.models.made_up", text, ast.parse(text))
    assert [(item.name, item.deferred) for item in file.imports()] == [
        ("mg_llava.inference.predictor", False),
        ("mg_llava.data.collate", True),
    ]
    assert not may_import("models", "data") and not may_import("models", "inference") and may_import("data", "work")
    assert not may_import("work", "data") and may_import("evaluation", "inference")


# -- no circles -----------------------------------------------------------------------------------------------------

IN_A_CIRCLE: set[str] = set()
"""Modules that still need each other in a circle, by lazy imports; the list only gets shorter."""


def import_graph(lazy: bool) -> dict[str, set[str]]:
    """Modules that each module needs.

    Args:
        lazy: Every import of the file itself counts. Otherwise those that run when it is imported, with the
            ``__init__`` of other packages, which run as well.
    """
    known = package_files()
    graph: dict[str, set[str]] = {}
    for name, file in known.items():
        around = {name, *ancestors(name)}
        targets: set[str] = set()
        for item in file.imports():
            if item.name in known and (lazy or not item.deferred):
                targets |= {item.name} if lazy else {item.name, *(set(ancestors(item.name)) - around)}
        graph[name] = targets - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that all reach each other (Tarjan's strongly connected components of more than one)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph[node]:
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            group = set()
            while not group or node not in group:
                group.add(stack.pop())
            if len(group) > 1:
                found.append(group)

    for node in graph:
        if node not in order:
            visit(node)
    return found


def test_no_circle_while_importing() -> None:
    assert circles(import_graph(lazy=False)) == []


def test_no_circle_of_files() -> None:
    groups = circles(import_graph(lazy=True))
    listed = "\n\n".join(", ".join(sorted(group)) for group in groups)
    compare({name for group in groups for name in group}, IN_A_CIRCLE, f"No circle of files. Circles:\n{listed}\n")


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"f"}, "f": {"e"}}
    assert sorted(map(sorted, circles(graph))) == [["a", "b", "c"], ["e", "f"]]


# -- light readers and optional packages ----------------------------------------------------------------------------

TENSORS = {"torch", "torchvision", "transformers", "mmengine", "xtuner", "timm", "open_clip", "peft", "accelerate"}
"""Packages that load torch."""
READERS = ("mg_llava.data.records", "mg_llava.data.text.coordinates", "mg_llava.data.text.published_boxes")
"""Reading records needs no tensors."""
HEAVY_READERS: set[str] = {
    "mg_llava.data.records.index",
}
"""Readers that still load tensors; the list only gets shorter."""


def loaded_by(module: str) -> set[str]:
    """Packages of others that importing one of our modules imports."""
    known = package_files()
    seen: set[str] = set()
    outside: set[str] = set()
    waiting = [module, *ancestors(module)]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in known:
            continue
        seen.add(name)
        for item in known[name].imports():
            if item.deferred:
                continue
            if item.name.split(".")[0] == "mg_llava":
                waiting += [item.name, *ancestors(item.name)]
            else:
                outside.add(item.name.split(".")[0])
    return outside


def test_readers_of_records_load_no_tensors() -> None:
    readers = {name for name in package_files() if any(f"{name}.".startswith(f"{room}.") for room in READERS)}
    heavy = {name for name in readers if loaded_by(name) & TENSORS}
    compare(heavy, HEAVY_READERS, "Reading records imports neither torch nor transformers")


PACKAGES = {
    "av": "av",
    "bitsandbytes": "bitsandbytes",
    "deepspeed": "deepspeed",
    "fastapi": "fastapi",
    "flash-attn": "flash_attn",
    "gguf": "gguf",
    "httpx": "httpx",
    "liger-kernel": "liger_kernel",
    "lmms-eval": "lmms_eval",
    "openpyxl": "openpyxl",
    "prometheus_client": "prometheus_client",
    "pyarrow": "pyarrow",
    "pycocoevalcap": "pycocoevalcap",
    "pycocotools": "pycocotools",
    "pydantic": "pydantic",
    "ray": "ray",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "sse-starlette": "sse_starlette",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "uvicorn": "uvicorn",
    "wandb": "wandb",
}
"""What the packages of the extras are imported as."""
NETWORK = {
    "aiohttp",
    "fastapi",
    "gradio",
    "httpx",
    "huggingface_hub",
    "openai",
    "requests",
    "starlette",
    "triton",
    "uvicorn",
}
ADAPTERS = {"mg_llava/evaluation/lmms.py -> lmms_eval.api.model"}
"""Imports of the package that alone imports the file."""
SERVERS = ("mg_llava/inference/serving/", "mg_llava/inference/web/")
"""Folders that are imported by the commands alone that need their packages."""
EARLY: set[str] = set()
"""Early imports of optional packages that are still there; the list only gets shorter."""


def extras() -> dict[str, list[str]]:
    """The extras of ``setup.py``."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXTRAS":
            return ast.literal_eval(node.value)
    raise AssertionError("setup.py has no EXTRAS")


def test_optional_packages_are_imported_where_they_are_used() -> None:
    optional = NETWORK | set(PACKAGES.values())
    found = {
        f"{file.path} -> {item.name}"
        for file in package_files().values()
        for item in file.imports()
        if not item.deferred and item.name.split(".")[0] in optional and not file.path.startswith(SERVERS)
    }
    compare(
        found - ADAPTERS, EARLY, "Optional, network and GPU packages are imported inside the functions that use them"
    )


def test_nothing_but_their_commands_imports_servers_early() -> None:
    modules = tuple(folder.replace("/", ".") for folder in SERVERS)
    early = {
        file.path
        for file in package_files().values()
        for item in file.imports()
        if not item.deferred and f"{item.name}.".startswith(modules) and not file.path.startswith(SERVERS)
    }
    assert early == set()


@pytest.mark.parametrize("extra", sorted(set(extras()) - {"dev"}))
def test_every_optional_package_is_known_here(extra: str) -> None:
    names = {requirement.split("=")[0].split("<")[0].split(">")[0] for requirement in extras()[extra]}
    assert names <= set(PACKAGES), "say in PACKAGES what it is imported as"
