"""Mergers: visual tokens and features of boxes of a canvas read each other."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mg_llava.data.collate import collate
from mg_llava.models.interfaces import Merger
from mg_llava.models.objects.mergers import BoxesIntoPicture, PictureIntoBoxes
from tests import toy


class BoxesReadMap(Merger):
    """Adds a projection of the mean visual token to features of boxes."""

    def __init__(self, visual_channels: int, object_channels: int) -> None:
        super().__init__()
        self.mix = nn.Linear(visual_channels, object_channels)

    def forward(self, low: Tensor, visual: Tensor, objects: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        means = self.mix(visual.mean(dim=1))
        return visual, [own + mean for own, mean in zip(objects, means, strict=True)]


def read(merger: nn.Module, queries: Tensor, things: Tensor) -> Tensor:
    """What queries ``(Q, C_q)`` read of ``(K, C_k)``, by loops over both."""

    def normed(part: nn.Sequential, row: Tensor) -> Tensor:
        centered = row - row.mean()
        scaled = centered / (centered.square().mean() + 1e-5).sqrt()
        return part[1].weight @ (scaled * part[0].weight + part[0].bias) + part[1].bias

    attention = merger.attention
    found = torch.zeros_like(queries)
    for place, row in enumerate(queries):
        query = normed(attention.query, row)
        scores = torch.stack([query @ normed(attention.key, thing) for thing in things]) / len(row) ** 0.5
        shares = scores.exp() / scores.exp().sum()
        for share, thing in zip(shares, things, strict=True):
            found[place] += share * normed(attention.value, thing)
    return found


def filled(merger: nn.Module) -> nn.Module:
    """A merger in float64 with random parameters."""
    torch.manual_seed(1)
    for parameter in merger.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return merger


COUNTS = (3, 0, 1, 7)


def inputs(counts: Sequence[int] = COUNTS) -> tuple[Tensor, Tensor, list[Tensor]]:
    torch.manual_seed(2)
    low, visual = torch.randn(len(counts), 4, 6).double(), torch.randn(len(counts), 4, 8).double()
    return low, visual, [torch.randn(count, 10).double() for count in counts]


def test_boxes_into_picture_by_loops() -> None:
    merger = filled(BoxesIntoPicture(8, 10))
    low, visual, objects = inputs()
    merged, left = merger(low, visual, objects)
    assert left == [] and torch.equal(merged[1], visual[1]), "a picture without boxes stays as it is"
    for place in (0, 2, 3):
        expected = visual[place] + read(merger, visual[place], objects[place])
        torch.testing.assert_close(merged[place], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("source", ["low", "fused"])
def test_picture_into_boxes_by_loops(source: str) -> None:
    merger = filled(PictureIntoBoxes(6, 8, 10, source=source))
    low, visual, objects = inputs()
    same, merged = merger(low, visual, objects)
    assert same is visual and len(merged) == sum(COUNTS)
    for place, (own, found) in enumerate(zip(objects, merged.split(COUNTS), strict=True)):
        expected = own + read(merger, own, (low if source == "low" else visual)[place])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("counts", [(3,), (2, 0, 1), (0, 0, 0, 0)])
def test_as_many_tensors_leave_a_merger_for_any_number_of_pictures(counts: tuple[int, ...]) -> None:
    """DeepSpeed hangs a backward hook on each, and processes must gather split parameters in one order."""
    merger, returned = filled(PictureIntoBoxes(6, 8, 10)), list[Tensor]()
    merger.register_forward_hook(lambda module, given, found: returned.extend(found))
    merger(*inputs(counts))
    assert [tuple(item.shape) for item in returned] == [(len(counts), 4, 8), (sum(counts), 10)]
    returned[1].sum().backward()
    assert all(parameter.grad is not None for parameter in merger.parameters())


@pytest.mark.parametrize("counts", [(0,), (0, 0), (1,), (100, 0), (100, 1)])
@pytest.mark.parametrize("kind", [BoxesIntoPicture, PictureIntoBoxes])
def test_numbers_of_boxes(kind: type, counts: tuple[int, ...]) -> None:
    sizes = {"visual_channels": 8, "object_channels": 10} | ({"low_channels": 6} if kind is PictureIntoBoxes else {})
    merger = filled(kind(**sizes))
    low, visual, objects = inputs(counts)
    merged, boxes = merger(low, visual, objects)
    boxes = boxes.split(counts) if kind is PictureIntoBoxes else boxes
    for place, own in enumerate(objects):  # as each canvas alone
        alone, alone_boxes = merger(low[place : place + 1], visual[place : place + 1], [own])
        torch.testing.assert_close(merged[place], alone[0])
        if kind is PictureIntoBoxes:
            torch.testing.assert_close(boxes[place], alone_boxes)
    sum(item.sum() for item in (merged, *boxes)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in merger.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_init_is_the_identity(dtype: torch.dtype) -> None:
    low, visual, objects = inputs()
    low, visual, objects = low.to(dtype), visual.to(dtype), [item.to(dtype) for item in objects]
    merged, _ = BoxesIntoPicture(8, 10, zero_init=True).to(dtype)(low, visual, objects)
    assert torch.equal(merged, visual)
    _, boxes = PictureIntoBoxes(6, 8, 10, zero_init=True).to(dtype)(low, visual, objects)
    assert torch.equal(boxes, torch.cat(objects))
    assert not torch.equal(BoxesIntoPicture(8, 10).to(dtype)(low, visual, objects)[0], visual), "random otherwise"


def test_published_sizes() -> None:
    with torch.device("meta"):
        found = [BoxesIntoPicture(1024, 2880), PictureIntoBoxes(1024, 1024, 2880)]
    weights = [sum(p.numel() for p in merger.parameters() if p.ndim == 2) for merger in found]
    assert weights == [1024 * 1024 + 2 * 2880 * 1024, 2880 * 2880 + 2 * 1024 * 2880]


def test_unknown_source() -> None:
    with pytest.raises(ValueError, match="'low' or 'fused', found 'high'"):
        PictureIntoBoxes(6, 8, 10, source="high")


# -- in a system ----------------------------------------------------------------------------------------------------


def test_a_merger_reads_the_tokens_of_its_own_canvas(toy_paths: dict[str, str]) -> None:
    plain, model = toy.build_model(toy_paths), toy.build_model(toy_paths, merger={"type": BoxesReadMap})
    model.load_state_dict(plain.state_dict(), strict=False)
    batch = collate(toy.make_batch([(9, 2), (6, 0), (5, 1)]))["data"]
    canvas, boxes = batch["canvas"], batch["boxes"]
    looked, counts = model.eval().look(canvas, boxes), [len(item) for item in boxes]
    before, after = plain.eval().connect(looked, counts), model.connect(looked, counts)
    fused = model.fuse_module(looked.seen["visual_encoder"].tokens, looked.seen["visual_encoder_aux"])
    pooled = looked.pooled.split(counts)
    for place, (own, changed) in enumerate(zip(before, after, strict=True)):
        assert [segment.kind for segment in changed] == ["visual", "object"]
        torch.testing.assert_close(changed[0].tokens, own[0].tokens)
        shifted = pooled[place] + model.box_fuse_module.mix(fused[place].mean(dim=0))
        torch.testing.assert_close(changed[1].tokens, model.bbox_projector.project(shifted))


def test_boxes_in_the_picture_cost_no_tokens(toy_paths: dict[str, str]) -> None:
    model = toy.build_model(toy_paths, merger={"type": "mg_llava.BoxesIntoPicture"}).eval()
    assert model.tokens_of(1, 5) == model.tokens_of(1, 0) == 4
    assert not list(model.bbox_projector.parameters()) and not any("bbox" in key for key in model.state_dict())
    size = toy.CANVAS
    canvas = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    boxes = [torch.tensor([[1.0, 1.0, 20.0, 20.0]]), torch.zeros(0, 4)]
    first, second = model.encode(canvas, boxes)
    assert [segment.kind for segment in (*first, *second)] == ["visual", "visual"]
    moved = model.encode(canvas, [boxes[0] + 9, boxes[1]])
    assert not torch.equal(moved[0][0].tokens, first[0].tokens), "boxes are seen"
    assert torch.equal(moved[1][0].tokens, second[0].tokens)


def test_a_merger_is_trained_saved_and_needs_boxes(toy_paths: dict[str, str]) -> None:
    model = toy.build_model(toy_paths, merger={"type": BoxesReadMap}).train()
    model(collate(toy.make_batch([(9, 0), (5, 0)]))["data"])["loss"].backward()  # text alone
    assert model.box_fuse_module.mix.weight.grad is not None
    assert {"box_fuse_module.mix.weight", "box_fuse_module.mix.bias"} <= set(model.state_dict())
    with pytest.raises(ValueError, match=r"merger reads boxes, but box_projector is None"):
        toy.build_model(toy_paths, merger={"type": BoxesReadMap}, box_projector=None)


def test_oracle_is_softmax_attention() -> None:
    """The loops above against torch, so that both are right."""
    merger = filled(BoxesIntoPicture(8, 10))
    _, visual, objects = inputs()
    q, k, v = (
        part(x)
        for part, x in (
            (merger.attention.query, visual[0]),
            (merger.attention.key, objects[0]),
            (merger.attention.value, objects[0]),
        )
    )
    torch.testing.assert_close(read(merger, visual[0], objects[0]), F.softmax(q @ k.T / 8**0.5, dim=-1) @ v)
