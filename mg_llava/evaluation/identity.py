"""All that replies depend on, as hashes and plain values: an earlier run is continued only if all is the same."""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mg_llava.data.records.open import fingerprint
from mg_llava.evaluation.benchmark import Benchmark, Question

if TYPE_CHECKING:
    from mmengine.config import Config

    from mg_llava.inference import Predictor

PACKAGES = ("mg_llava", "torch", "transformers", "xtuner", "mmengine", "timm", "open_clip_torch")
_PLAIN = (str, int, float, bool, type(None))
_TEXT_FILES = (".json", ".jsonl", ".tsv", ".csv", ".txt")


def run_identity(
    benchmark: Benchmark,
    questions: Sequence[Question],
    predictor: "Predictor",
    boxes: Mapping[str, Any],
    generation: Mapping[str, Any],
    model: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """All that the replies to a benchmark depend on, as plain values.

    Args:
        benchmark: The benchmark.
        questions: All of its questions.
        predictor: The model with template and generation settings.
        boxes: Description of the box source.
        generation: Settings in place of the predictor's.
        model: Tells the model from others; None for a checksum of its weights.
    """
    digest = hashlib.sha256()
    for question in questions:
        digest.update(f"{question.id}\0{question.text}\0".encode())
    settings = {**predictor.generation, **generation}
    return {
        "benchmark": benchmark.identity,
        "questions": digest.hexdigest()[:16],
        "data": {path.name: _data_hash(path) for path in benchmark.data},
        "model": dict(model) if model is not None else {"weights": _weights_hash(predictor.model)},
        "generation": {
            **{key: value if isinstance(value, _PLAIN) else repr(value) for key, value in sorted(settings.items())},
            "system": predictor.front_end.system,
            "dtype": str(next(predictor.model.llm.parameters()).dtype).removeprefix("torch."),
        },
        "boxes": {key: value for key, value in boxes.items() if key != "file"},
    }


def _data_hash(path: Path) -> str:
    """Of a file its content; of a folder the names and sizes of the text files in it."""
    if path.is_file():
        return fingerprint(path)
    names = sorted(f"{p.name} {p.stat().st_size}" for p in path.iterdir() if p.suffix.lower() in _TEXT_FILES)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _weights_hash(model: Any) -> str:
    """A checksum of all weights, by name."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {float(parameter.detach().double().sum())!r}".encode())
    return digest.hexdigest()[:16]


def hash_config(config: "Config") -> str:
    """Short hash of a config with everything that it inherits."""
    return hashlib.sha256(config.pretty_text.encode()).hexdigest()[:32]


def hash_checkpoint(path: str | Path) -> str:
    """Short hash of a checkpoint's content: of a file, or of all files of a folder.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
    """
    from mg_llava.models.weights.checkpoint import newest_checkpoint

    path = newest_checkpoint(Path(path))
    if path.is_file():
        return fingerprint(path)
    if not path.is_dir():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    digest = hashlib.sha256()
    for part in (file for file in sorted(path.rglob("*")) if file.is_file()):
        digest.update(f"{part.relative_to(path)} {fingerprint(part)}".encode())
    return digest.hexdigest()[:32]


def package_versions() -> dict[str, str]:
    """Versions of what results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
