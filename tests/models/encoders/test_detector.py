"""Detectors as encoders: the library's own model is the oracle, and its traps are kept out."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from mg_llava.models.encoders.detector import TransformerDetector
from mg_llava.models.encoders.phrases import Phrases, plan_masks
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


def test_grounding_dino_is_asked_for_classes(tmp_path: Path) -> None:
    """Every class is a phrase of its own, and has the score of its best token."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoTokenizer
    from transformers.models.grounding_dino import modeling_grounding_dino

    find_masks = modeling_grounding_dino.generate_masks_with_special_tokens_and_transfer_map
    folder = toys.write_grounding_dino(tmp_path / "dino")
    names = ["Dog", "traffic light", "st. bernard"]
    canvas = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    encoder = TransformerDetector(folder, objects=5, image_size=96, classes=names, dtype="float32")
    assert encoder.spec.classes == tuple(names) and (encoder.spec.objects, encoder.spec.object_channels) == (5, 64)
    found = encoder(canvas).detected
    text = AutoTokenizer.from_pretrained(folder)("dog. traffic light. st bernard.", return_tensors="pt")
    assert encoder.spec.architecture["phrases"][0] == text["input_ids"][0].tolist()
    # transformers finds the phrases of a text itself, one token after the other
    ends = {"special_tokens": torch.tensor([101, 102, 1012, 1029])}  # of which transformers 4 knows itself
    taken = {name: ids for name, ids in ends.items() if name in inspect.signature(find_masks).parameters}
    for planned, own in zip(
        plan_masks(Phrases(*encoder.spec.architecture["phrases"])), find_masks(text["input_ids"], **taken), strict=True
    ):
        assert torch.equal(planned, own[0])
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    mean, std = encoder.spec.mean, encoder.spec.std
    with torch.no_grad():
        both = {name: values.expand(2, -1) for name, values in text.items()}
        wanted = model(pixel_values=normalize(canvas, mean, std), **both)
    lengths = [3, len("trafficlight"), len("stbernard")]  # a token for each letter, and a dot after each phrase
    starts = [1, 5, 5 + lengths[1] + 1]
    phrases = [wanted.logits[..., start : start + length] for start, length in zip(starts, lengths, strict=True)]
    logits = torch.stack([own.max(-1).values for own in phrases], dim=-1)  # (2, 12, 3)
    assert found is not None
    for row in range(2):
        scores = logits[row].sigmoid().max(-1).values
        order = scores.argsort(descending=True)[:5]
        assert torch.allclose(found.scores[row], scores[order], atol=1e-6)
        assert torch.allclose(found.logits[row], logits[row, order], atol=1e-5)
        assert torch.allclose(found.boxes[row], wanted.pred_boxes[row, order], atol=1e-6)
        assert torch.allclose(found.states[row], wanted.last_hidden_state[row, order], atol=1e-5)
    again = TransformerDetector.from_spec(encoder.spec, torch.float32)
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(canvas).detected.logits, found.logits)  # type: ignore[union-attr]


def test_classes_belong_to_grounding_dino_alone(tmp_path: Path) -> None:
    folder = toys.write_grounding_dino(tmp_path / "dino", limit=24)
    for wrong in (None, [], ["dog", "Dog"], ["dog", "."]):
        with pytest.raises(ValueError, match="give the names of classes, each once"):
            TransformerDetector(folder, classes=wrong)
    with pytest.raises(ValueError, match=r"2 classes take 27 tokens, .* reads 24; give fewer"):
        TransformerDetector(folder, classes=["a" * 11, "b" * 12])
    closed = str(toys.write_detr(tmp_path / "detr"))
    with pytest.raises(ValueError, match="knows its own classes"):
        TransformerDetector(closed, classes=["dog"])
    assert TransformerDetector.describe({"path": closed}).classes == ("LABEL_0", "LABEL_1", "LABEL_2")


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


def test_cells_hold_an_object_each(toy_paths: dict[str, str], tmp_path: Path) -> None:
    """Against a loop over the cells of the ConvNeXt's last map; boxes have their centers in their cells."""
    from mg_llava.models.encoders.cell_detector import CellDetector
    from mg_llava.models.encoders.convnext import OpenCLIPConvNeXtEncoder
    from tests import toy

    folder = str(toys.write_cells(tmp_path / "cells", toy_paths))
    detector = CellDetector(folder, toy.CANVAS, objects=9, dtype="float32")
    assert (detector.spec.objects, detector.spec.classes, detector.spec.has_rest) == (4, ("dog", "cat"), True)
    canvas = torch.randint(0, 256, (2, 3, toy.CANVAS, toy.CANVAS), dtype=torch.uint8)
    found = detector(canvas).detected
    cells = OpenCLIPConvNeXtEncoder(toy_paths["convnext"], toy.CANVAS, dtype="float32")(canvas).maps[-1]
    assert found is not None
    for picture in range(2):
        seen = []
        for row in range(2):
            for column in range(2):
                states, logits, boxes = detector.head(cells[picture, :, row, column].view(1, -1, 1, 1))
                center = (boxes[0, 0, :2] + torch.tensor([column, row])) / 2
                seen.append((states[0, 0], logits[0, 0], torch.cat([center, boxes[0, 0, 2:] / 2])))
        seen.sort(key=lambda one: -float(one[1].softmax(-1)[:2].max()))
        for place, (states, logits, box) in enumerate(seen):
            assert torch.allclose(found.states[picture, place], states, atol=1e-5)
            assert torch.allclose(found.logits[picture, place], logits, atol=1e-5)
            assert torch.allclose(found.boxes[picture, place], box, atol=1e-5)
            assert abs(float(found.scores[picture, place]) - float(logits.softmax(-1)[:2].max())) < 1e-5
