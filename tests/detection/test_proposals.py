"""Connected-component proposals: geometry, order, degenerate pictures, recall on the miniature."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.ops import box_iou

from mg_llava.detection.proposals import ConnectedComponentProposals
from mg_llava.registry import PROPOSERS

NANO = Path(__file__).resolve().parents[2] / "data" / "nano"


def picture_with(*boxes, size=(120, 90), background=40, ink=230):
    pixels = np.full((size[1], size[0], 3), background, np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1] = ink
    return Image.fromarray(pixels)


def test_boxes_are_in_original_pixels():
    truth = [(10, 20, 18, 34), (60, 5, 75, 19)]
    found = PROPOSERS.build(dict(type="ConnectedComponentProposals"))(picture_with(*truth))
    assert sorted(map(tuple, found.boxes.tolist())) == sorted(truth)
    assert found.boxes.dtype == np.float64
    assert len(found.scores) == len(found.labels) == 2
    assert found.labels == ["mark", "mark"]


def test_best_score_first_and_capped():
    image = picture_with((10, 20, 18, 34), ink=150)
    image.paste((250, 250, 250), (60, 5, 75, 19))
    found = ConnectedComponentProposals()(image)
    assert found.scores == sorted(found.scores, reverse=True)
    assert found.boxes[0].tolist() == [60, 5, 75, 19]
    assert len(ConnectedComponentProposals(max_boxes=1)(image).boxes) == 1


def test_parts_one_pixel_apart_are_one_mark():
    found = ConnectedComponentProposals()(picture_with((10, 20, 14, 34), (15, 20, 19, 34)))
    assert found.boxes.tolist() == [[10, 20, 19, 34]]


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 64)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_nothing_to_find(size, mode):
    found = ConnectedComponentProposals()(Image.new(mode, size, 0))
    assert found.boxes.shape == (0, 4)
    assert found.scores == []
    assert found.labels == []


def test_the_picture_is_not_changed():
    image = picture_with((10, 20, 18, 34))
    before = image.tobytes()
    ConnectedComponentProposals()(image)
    assert image.tobytes() == before


@pytest.mark.parametrize(
    "arguments",
    [dict(min_side=0), dict(min_side=40), dict(min_contrast=300), dict(relative_contrast=0), dict(max_boxes=0)],
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=r"has to be|need"):
        ConnectedComponentProposals(**arguments)


def test_finds_the_digits_of_held_out_pictures(monkeypatch):
    """At least 95 % of the digits at IoU 0.5."""
    monkeypatch.syspath_prepend(str(NANO))
    import scenes

    rng = np.random.default_rng(5)
    propose = ConnectedComponentProposals()
    hits = []
    for _ in range(60):
        scene = scenes.draw_scene(rng, "heldout")
        boxes = propose(scene.image).boxes
        truth = np.array([mark.box for mark in scene.digits])
        overlap = _iou(truth, boxes)
        hits += (overlap.max(axis=1) >= 0.5).tolist() if len(boxes) else [False] * len(truth)
    sys.modules.pop("scenes", None)
    assert np.mean(hits) >= 0.95


def _iou(first, second):
    import torch

    return box_iou(torch.from_numpy(first), torch.from_numpy(second)).numpy()
