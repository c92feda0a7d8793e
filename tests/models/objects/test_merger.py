"""Mergers: visual and object tokens of a canvas read each other."""

import pytest
import torch
from torch import Tensor, nn

from mg_llava.data.collate import collate
from mg_llava.models.interfaces import Merger
from tests import toy


class BoxesReadMap(Merger):
    """Adds a projection of the mean visual token to the tokens of boxes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Linear(channels, channels)

    def forward(self, visual: list[Tensor], objects: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return visual, [own + self.mix(seen.mean(dim=0)) for seen, own in zip(visual, objects, strict=True)]


def test_a_merger_reads_the_tokens_of_its_own_canvas(toy_paths: dict[str, str]) -> None:
    plain, model = toy.build_model(toy_paths), toy.build_model(toy_paths, merger={"type": BoxesReadMap})
    model.load_state_dict(plain.state_dict(), strict=False)
    batch = collate(toy.make_batch([(9, 2), (6, 0), (5, 1)]))["data"]
    canvas, boxes = batch["canvas"], batch["boxes"]
    before, after = plain.eval().encode(canvas, boxes), model.eval().encode(canvas, boxes)
    for own, changed in zip(before, after, strict=True):
        assert [segment.kind for segment in changed] == ["visual", "object"]
        assert torch.equal(changed[0].tokens, own[0].tokens)
        shift = model.merger.mix(own[0].tokens.mean(dim=0))
        torch.testing.assert_close(changed[1].tokens, own[1].tokens + shift)


def test_a_merger_is_trained_saved_and_needs_boxes(toy_paths: dict[str, str]) -> None:
    model = toy.build_model(toy_paths, merger={"type": BoxesReadMap}).train()
    model(collate(toy.make_batch([(9, 0), (5, 0)]))["data"])["loss"].backward()  # text alone
    assert model.merger.mix.weight.grad is not None
    assert {"merger.mix.weight", "merger.mix.bias"} <= set(model.state_dict())
    with pytest.raises(ValueError, match=r"merger reads the tokens of boxes, but box_projector is None"):
        toy.build_model(toy_paths, merger={"type": BoxesReadMap}, box_projector=None)
