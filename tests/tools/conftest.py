"""A trained toy model for the tools that ask one."""

from pathlib import Path

import pytest
import torch

from tests import toy


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, toy_paths: dict[str, str]) -> dict[str, str]:
    """Config and checkpoint of a toy model, and a picture."""
    folder = tmp_path_factory.mktemp("predict")
    processor = {"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS}
    (folder / "config.py").write_text(
        f"model = {toy.model_config(toy_paths)!r}\ntokenizer = {toy_paths['llm']!r}\nprompt_template = 'vicuna'\n"
        f"picture_processor = {processor!r}\n"
    )
    torch.save({"state_dict": toy.build_model(toy_paths).state_dict()}, folder / "iter_1.pth")
    pictures = Path(toy.write_data(folder / "data", records=1)["image_folder"])
    return {
        "config": str(folder / "config.py"),
        "checkpoint": str(folder / "iter_1.pth"),
        "image": str(pictures / "0_0.png"),
    }
