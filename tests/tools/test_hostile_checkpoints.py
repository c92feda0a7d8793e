"""Every command that opens a checkpoint, with every file that would run code: one line says so, and nothing runs."""

from pathlib import Path

import pytest
import torch

from tests.hostile import FORMATS
from tests.run import run_command
from tests.tools.test_evaluate import write_mmbench

COMMANDS: dict[str, tuple[str, ...]] = {
    "predict": ("predict", "{config}", "--checkpoint", "{file}", "--image", "{image}", "--question", "what?"),
    "chat": ("chat", "{config}", "--checkpoint", "{file}", "--image", "{image}", "--question", "what?"),
    "serve": ("serve", "{config}", "--checkpoint", "{file}", "--port", "0"),
    "evaluate": (
        "evaluate-mmbench",
        "{config}",
        "--checkpoint",
        "{file}",
        "--data",
        "{table}",
        "--out",
        "{folder}/out",
    ),
    "convert": ("convert", "{file}", "{folder}/out.pth", "--to", "reference"),
    "inspect": ("convert", "{file}", "--inspect"),
    "verify": ("convert", "{file}", "--inspect", "--verify"),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkpoint_that_would_run_code(files: dict[str, str], tmp_path: Path, command: str, kind: str) -> None:
    file = tmp_path / "iter_9.pth"
    FORMATS[kind](file, tmp_path / "trace", {"weight": torch.ones(2)})
    name, *arguments = COMMANDS[command]
    given: dict[str, object] = {"config": files["config"], "file": file, "image": files["image"], "folder": tmp_path}
    given["table"] = write_mmbench(tmp_path / "table.tsv", rows=1)
    done = run_command(name, *(argument.format(**given) for argument in arguments))
    said = done.out + done.err
    assert done.status not in (0, None), said
    assert file.name in said and "Traceback" not in said
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("trusted", [True, False])
def test_a_folder_that_would_run_code(tmp_path: Path, toy_paths: dict[str, str], kind: str, trusted: bool) -> None:
    """Stand-alone folders with trust in their code, and ours without: their weights run nothing."""
    from transformers import AutoModelForImageTextToText

    import mg_llava.hf  # noqa: F401
    from tests.hf.conftest import write_folder

    folder = tmp_path / "folder"
    write_folder(folder, toy_paths, standalone=trusted)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    FORMATS[kind](folder / "pytorch_model.bin", tmp_path / "trace", {"weight": torch.ones(2)})
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=trusted)
    assert not (tmp_path / "trace").exists()
