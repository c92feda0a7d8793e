"""Detectors as encoders: the library's own model is the oracle, and its traps are kept out."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mg_llava.models.encoders.detector import TransformerDetector
from mg_llava.models.encoders.views import normalize
from tests.detection import toys

KINDS = ["detr", "conditional_detr", "deformable_detr", "rt_detr"]


def oracle(folder: Path, canvas: torch.Tensor) -> Any:
    from transformers import AutoModelForObjectDetection

    model = AutoModelForObjectDetection.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(pixel_values=normalize(canvas, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))


@pytest.mark.parametrize("kind", KINDS)
def test_best_objects_of_the_library(kind: str, tmp_path: Path) -> None:
    folder = toys.write_detr(tmp_path / kind, kind)
    canvas = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    encoder = TransformerDetector(str(folder), objects=4, dtype="float32")
    found, wanted = encoder(canvas).detected, oracle(folder, canvas)
    assert found is not None
    width = 32 if kind == "deformable_detr" else 16
    assert found.states.shape == (2, 4, width) and (encoder.spec.objects, encoder.spec.object_channels) == (4, width)
    for row in range(2):
        logits = wanted.logits[row]
        scores = logits.softmax(-1)[:, :3].max(-1).values if kind == "detr" else logits.sigmoid().max(-1).values
        order = sorted(range(6), key=lambda query: -float(scores[query]))[:4]
        assert torch.allclose(found.scores[row], scores[order], atol=1e-6)
        assert torch.allclose(found.boxes[row], wanted.pred_boxes[row, order], atol=1e-6)
        assert torch.allclose(found.logits[row], logits[order], atol=1e-5)
        assert torch.allclose(found.states[row], wanted.last_hidden_state[row, order], atol=1e-5)
    again = TransformerDetector.from_spec(encoder.spec, torch.float32)
    again.load_state_dict(encoder.state_dict())
    again.train()  # a frozen encoder stays as it is; RT-DETR would put denoising queries in front
    assert torch.equal(again(canvas).detected.states, found.states)  # type: ignore[union-attr]


def test_all_queries_where_there_are_fewer(tmp_path: Path) -> None:
    encoder = TransformerDetector(str(toys.write_detr(tmp_path / "detr")), dtype="float32")
    assert encoder.spec.objects == 6 and encoder.spec.image_size == 64


def test_an_auxiliary_loss_does_not_change_the_network(tmp_path: Path) -> None:
    """With it transformers' decoder normalizes the states that its layers hand on."""
    folder = toys.write_detr(tmp_path / "detr")
    canvas = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    plain = TransformerDetector(str(folder), dtype="float32")(canvas).detected
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"auxiliary_loss": false', '"auxiliary_loss": true'))
    changed = TransformerDetector(str(folder), dtype="float32")(canvas).detected
    assert plain is not None and changed is not None and torch.equal(plain.logits, changed.logits)


def test_other_models_are_refused(toy_paths: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a 'clip_vision_model' model; a detector is one of detr, conditional"):
        TransformerDetector(toy_paths["clip"])
    with pytest.raises(FileNotFoundError):
        TransformerDetector(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="objects is 0"):
        TransformerDetector(str(toys.write_detr(tmp_path / "detr")), objects=0)
