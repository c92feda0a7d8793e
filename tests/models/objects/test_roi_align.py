"""Box tokens: golden features, equality with RoIAlign on the dense map for any box, and that no such map is made."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import roi_align

from mg_llava.models.interfaces import Seen
from mg_llava.models.objects import roi_align as box_projector
from mg_llava.models.objects.roi_align import RoIAlignBoxProjector, axis_weights, fold_upsampling, pool_boxes
from mg_llava.models.objects.stage_sum import StageSumBoxProjector
from mg_llava.registry import MODELS

CHANNELS = (3, 2, 4, 2)
DEGENERATE = [
    [0, 0, 0, 0],  # stands for "no box"
    [64, 10, 64, 40],  # left edge on the canvas's right edge: nothing
    [10, 64, 40, 64],
    [63.9, 63.9, 64, 64],
    [40, 40, 20, 10],  # inverted
    [64, 64, 0, 0],
    [-30, -20, -10, -5],  # outside
    [-4, -4, 4, 4],  # first sample at most one cell outside
    [-4, 30, -4, 30],
    [-900, -900, 1200, 1500],  # much larger than the canvas
    [0, 0, 64, 64],
    [17, 0, 17, 64],
    [2000, 2000, 2001, 2001],
]


def dense_pooling(stages: list[Tensor], boxes: list[Tensor], canvas: tuple[int, int], bins: int) -> list[Tensor]:
    """The published computation: upsample, concatenate, RoIAlign, mean. Both axes on their own scale."""
    height, width = max(s.shape[2] for s in stages), max(s.shape[3] for s in stages)
    dense = torch.cat(
        [F.interpolate(s.float(), size=(height, width), mode="bilinear", align_corners=False) for s in stages], dim=1
    )
    scale_y, scale_x = height / canvas[0], width / canvas[1]
    if scale_x == scale_y:
        return [
            roi_align(dense[i : i + 1], [b.float()], bins, scale_x, -1, aligned=False).mean((2, 3))
            for i, b in enumerate(boxes)
        ]
    factor = torch.tensor([scale_x, scale_y, scale_x, scale_y])
    return [
        roi_align(dense[i : i + 1], [b.float() * factor], bins, 1.0, -1, aligned=False).mean((2, 3))
        for i, b in enumerate(boxes)
    ]


def random_stages(pictures: int, grids: list[tuple[int, int]], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(pictures, c, h, w, generator=generator) for c, (h, w) in zip(CHANNELS, grids, strict=False)]


def random_boxes(count: int, canvas: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * canvas
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


# -- golden values --------------------------------------------------------------------------------------------------


def test_golden_box_features(golden_box_features: dict[str, Tensor]) -> None:
    stages = [golden_box_features[f"stage_{index}"].float() for index in range(4)]
    (features,) = pool_boxes(stages, [golden_box_features["boxes_xyxy_768"]], 768)
    torch.testing.assert_close(features, golden_box_features["box_features"], rtol=1e-5, atol=1e-5)


def test_golden_box_features_from_half_precision_maps(golden_box_features: dict[str, Tensor]) -> None:
    stages = [golden_box_features[f"stage_{index}"] for index in range(4)]
    (features,) = pool_boxes(stages, [golden_box_features["boxes_xyxy_768"]], 768)
    torch.testing.assert_close(features, golden_box_features["box_features"], rtol=1e-5, atol=1e-5)


BOXES = torch.tensor(
    [[8, 169, 84, 323], [0, 0, 0, 0], [0, 0, 768, 768], [700, 10, 701, 500], [768, 100, 768, 200]]
).float()


def test_values_on_a_sine_map() -> None:
    sine = torch.sin(0.11 * torch.arange(3 * 192 * 192)).view(1, 3, 192, 192)
    expected = [
        [-0.0057266, 0.0118180, -0.0114767],
        [0.3911505, -0.1771819, -0.1332844],
        [0.0005010, -0.0003137, -0.0000445],
        [-0.0030769, 0.0073983, -0.0076831],
        [0, 0, 0],
    ]
    (features,) = pool_boxes([sine], [BOXES], 768)
    torch.testing.assert_close(features, torch.tensor(expected), rtol=0, atol=1e-4)
    # against RoIAlign itself on the same map the agreement is tighter
    torch.testing.assert_close(
        features, roi_align(sine, [BOXES], 56, 0.25, -1, aligned=False).mean((2, 3)), rtol=0, atol=1e-6
    )


def test_values_on_a_ramp() -> None:
    ramp = torch.arange(192.0)[:, None].expand(1, 1, 192, 192)
    (features,) = pool_boxes([ramp], [BOXES], 768)
    torch.testing.assert_close(features[:, 0], torch.tensor([61.5, 0.5, 95.99745, 63.75, 0]), rtol=0, atol=1e-4)


# -- equality with RoIAlign -----------------------------------------------------------------------------------------

coordinate = st.one_of(
    st.integers(-10, 80).map(float),
    st.floats(-100, 200, width=32),
    st.sampled_from([-4.0, 0.0, 4.0, 63.5, 64.0, 68.0, -1500.0, 1500.0]),
)
box_lists = st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), max_size=4)
grid_side = st.integers(1, 24)


@settings(max_examples=60, derandomize=True)
@given(
    boxes=st.lists(box_lists, min_size=1, max_size=3),
    grids=st.lists(st.tuples(grid_side, grid_side), min_size=1, max_size=4),
    canvas=st.sampled_from([(64, 64), (48, 96), (100, 70), (64, 61)]),
    bins=st.sampled_from([1, 7, 56]),
    seed=st.integers(0, 5),
)
@example(boxes=[DEGENERATE, [], DEGENERATE], grids=[(16, 16), (8, 8), (4, 4)], canvas=(64, 64), bins=56, seed=0)
@example(boxes=[DEGENERATE], grids=[(2, 2), (4, 4), (16, 16)], canvas=(64, 64), bins=56, seed=0)
def test_equals_roi_align_on_the_dense_map(
    boxes: list[list[tuple[float, ...]]],
    grids: list[tuple[int, int]],
    canvas: tuple[int, int],
    bins: int,
    seed: int,
) -> None:
    stages = random_stages(len(boxes), grids, seed)
    tensors = [torch.tensor(item, dtype=torch.float32).reshape(-1, 4) for item in boxes]
    pooled = pool_boxes(stages, tensors, canvas, bins)
    for mine, reference in zip(pooled, dense_pooling(stages, tensors, canvas, bins), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


@settings(max_examples=100, derandomize=True)
@given(
    edges=st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=8),
    side=st.integers(1, 40),
    scale=st.sampled_from([0.25, 0.125, 1 / 3, 1.0]),
    bins=st.sampled_from([1, 3, 56]),
)
def test_axis_weights_are_shares_of_samples(
    edges: list[tuple[float, float]], side: int, scale: float, bins: int
) -> None:
    start, end = torch.tensor(edges, dtype=torch.float32).unbind(1)
    weights = axis_weights(start, end, scale, side, bins)
    assert weights.shape == (len(edges), side)
    assert (weights >= 0).all() and (weights.sum(1) <= 1 + 1e-5).all()
    inside = (start * scale >= 0) & (end * scale <= side) & (start * scale + 1 <= side)
    torch.testing.assert_close(weights.sum(1)[inside], torch.ones(int(inside.sum())), rtol=1e-5, atol=1e-5)


def test_samples_on_the_border_fall_on_the_same_side() -> None:
    """Boxes whose samples hit exactly -1 or the last cell, where RoIAlign's weights jump."""
    stages = random_stages(1, [(16, 16)])
    steps = torch.arange(-80, 320) / 8  # eighths of a cell, exact in float32
    boxes = torch.stack([4 * steps, 4 * steps.flip(0), 4 * steps + 4 * 7, 4 * steps.flip(0) + 4 * 28], dim=1)
    for bins in (1, 7, 56):
        (mine,) = pool_boxes(stages, [boxes], 64, bins)
        (reference,) = dense_pooling(stages, [boxes], (64, 64), bins)
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


def test_fold_upsampling_is_the_adjoint_of_interpolation() -> None:
    for side, fine in ((3, 12), (5, 12), (12, 12), (7, 5)):
        weights, values = torch.randn(4, fine), torch.randn(side)
        upsampled = F.interpolate(values[None, None], size=fine, mode="linear", align_corners=False)[0, 0]
        torch.testing.assert_close(fold_upsampling(weights, side) @ values, weights @ upsampled)


# -- batches, dtypes, sizes -----------------------------------------------------------------------------------------

GRIDS = [(16, 16), (8, 8), (4, 4), (2, 2)]


@pytest.mark.parametrize("counts", [(3, 0, 5, 1), (0, 0, 2, 0), (0, 0, 0, 0)])
def test_batched_equals_one_by_one(counts: tuple[int, ...]) -> None:
    stages = random_stages(len(counts), GRIDS)
    boxes = [random_boxes(count, 64, seed) for seed, count in enumerate(counts)]
    together = pool_boxes(stages, boxes, 64)
    assert [tuple(item.shape) for item in together] == [(count, sum(CHANNELS)) for count in counts]
    for index, item in enumerate(together):
        (alone,) = pool_boxes([stage[index : index + 1] for stage in stages], [boxes[index]], 64)
        torch.testing.assert_close(item, alone, rtol=1e-6, atol=1e-6)


def test_memory_layout_does_not_matter() -> None:
    stages = random_stages(2, GRIDS)
    boxes = [random_boxes(4, 64, seed) for seed in range(2)]
    last = [stage.contiguous(memory_format=torch.channels_last) for stage in stages]
    for one, other in zip(pool_boxes(stages, boxes, 64), pool_boxes(last, boxes, 64), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_are_pooled_in_float32(dtype: torch.dtype) -> None:
    stages = [stage.to(dtype) for stage in random_stages(2, GRIDS)]
    boxes = [random_boxes(6, 64), torch.tensor(DEGENERATE).float()]
    exact = dense_pooling(stages, boxes, (64, 64), 56)
    for mine, reference in zip(pool_boxes(stages, boxes, 64), exact, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


def test_autocast_does_not_lower_the_precision() -> None:
    stages, boxes = random_stages(1, GRIDS), [random_boxes(6, 64)]
    (exact,) = pool_boxes(stages, boxes, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (mine,) = pool_boxes(stages, boxes, 64)
    assert torch.equal(mine, exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_boxes_of_other_dtypes(dtype: torch.dtype) -> None:
    stages, boxes = random_stages(1, GRIDS), random_boxes(6, 64).round()
    (mine,) = pool_boxes(stages, [boxes.to(dtype)], 64)
    (expected,) = pool_boxes(stages, [boxes], 64)
    assert torch.equal(mine, expected)


def test_slices_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = random_stages(2, GRIDS)
    boxes = [random_boxes(11, 64, seed) for seed in range(2)]
    whole = pool_boxes(stages, boxes, 64)
    monkeypatch.setattr(box_projector, "MAX_INTERMEDIATE_ELEMENTS", 100)
    for mine, expected in zip(pool_boxes(stages, boxes, 64), whole, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = result if isinstance(result, tuple | list) else [result]
        self.elements = max([self.elements, *(t.numel() for t in tensors if isinstance(t, Tensor))])
        return result


def test_neither_the_dense_map_nor_the_bins_are_made() -> None:
    stages = [torch.randn(1, c, 192 // f, 192 // f) for c, f in zip((8, 12, 16, 24), (1, 2, 4, 8), strict=True)]
    boxes = random_boxes(100, 768)
    boxes[0] = torch.tensor([-1e9, -1e9, 1e9, 1e9])
    dense, bins = 60 * 192 * 192, 100 * 60 * 56 * 56
    with LargestTensor() as largest:
        pool_boxes(stages, [boxes], 768)
    assert largest.elements <= stages[0].numel() < min(dense, bins) / 7


def test_size_of_the_box_costs_nothing() -> None:
    boxes = torch.tensor([[-1e6, -1e6, 1e6, 1e6], [-1e30, 0, 1e30, 5], [3e38, -3e38, -3e38, 3e38], [1e30, 0, 2e30, 9]])
    with LargestTensor() as largest:
        (features,) = pool_boxes(random_stages(1, GRIDS), [boxes], 64)
    assert largest.elements < 2000
    assert features.isfinite().all() and not features[3].any()


# -- the module -----------------------------------------------------------------------------------------------------


def test_tokens_and_gradients() -> None:
    module = RoIAlignBoxProjector(CHANNELS, 10)
    stages = random_stages(2, GRIDS)
    boxes = [random_boxes(3, 64), random_boxes(0, 64)]
    tokens = module(Seen(maps=stages), boxes, 64)
    assert tuple(tokens.shape) == (3, 10)
    features = dense_pooling(stages, boxes, (64, 64), 56)[0]
    torch.testing.assert_close(tokens, module.model(features), rtol=1e-5, atol=1e-5)
    tokens.square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_gradients_exist_without_boxes() -> None:
    module = RoIAlignBoxProjector(CHANNELS, 10)
    tokens = module(Seen(maps=random_stages(2, GRIDS)), [torch.zeros(0, 4)] * 2, 64)
    tokens.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in module.parameters())


def test_module_in_bfloat16() -> None:
    module = RoIAlignBoxProjector(CHANNELS, 10).bfloat16()
    tokens = module(Seen(maps=[stage.bfloat16() for stage in random_stages(1, GRIDS)]), [random_boxes(3, 64)], 64)
    assert tokens.dtype == torch.bfloat16 and tokens.isfinite().all()


def test_published_names_shapes_and_count() -> None:
    with torch.device("meta"):
        module = RoIAlignBoxProjector((192, 384, 768, 1536), 4096)
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == {
        "model.0.weight": (4096, 2880),
        "model.0.bias": (4096,),
        "model.2.weight": (4096, 4096),
        "model.2.bias": (4096,),
    }
    assert sum(parameter.numel() for parameter in module.parameters()) == 28_581_888


def test_chosen_stages_and_depth() -> None:
    module = RoIAlignBoxProjector(CHANNELS, 10, depth=3, bins=7, stages=[3])
    stages, boxes = random_stages(1, GRIDS), [random_boxes(3, 64)]
    expected = module.model(dense_pooling(stages[3:], boxes, (64, 64), 7)[0])
    torch.testing.assert_close(module(Seen(maps=stages), boxes, 64), expected, rtol=1e-5, atol=1e-5)
    assert len(module.model) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_of_one_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    free = RoIAlignBoxProjector(CHANNELS, 10, bins=7).to(dtype)
    held = RoIAlignBoxProjector(CHANNELS, 10, bins=7, token_norm=2.0).to(dtype)
    held.load_state_dict(free.state_dict())  # the setting adds no weight
    pooled = 100 * torch.randn(6, free.in_channels)
    tokens, wanted = held.project(pooled), free.project(pooled)
    assert tokens.dtype == dtype and held.project(pooled[:0]).shape == (0, 10)
    torch.testing.assert_close(tokens.float().norm(dim=1), torch.full((6,), 2.0), rtol=1e-2, atol=0)
    torch.testing.assert_close(F.cosine_similarity(tokens.float(), wanted.float()), torch.ones(6), rtol=1e-2, atol=0)
    tokens.float().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in held.parameters())


@pytest.mark.parametrize("norm", [0, -1.0, float("nan")])
def test_norms_that_no_token_can_have(norm: float) -> None:
    with pytest.raises(ValueError, match=f"token_norm must be positive, found {norm}"):
        RoIAlignBoxProjector(CHANNELS, 10, token_norm=norm)


def test_registry_name() -> None:
    module = MODELS.build({"type": "mg_llava.RoIAlignBoxProjector", "stage_channels": CHANNELS, "out_channels": 4})
    assert isinstance(module, RoIAlignBoxProjector)


# -- errors ---------------------------------------------------------------------------------------------------------


def test_number_of_pictures() -> None:
    with pytest.raises(ValueError, match="2 pictures but 1 lists of boxes"):
        pool_boxes(random_stages(2, GRIDS), [random_boxes(1, 64)], 64)


def test_shape_of_boxes() -> None:
    with pytest.raises(ValueError, match=r"boxes of picture 1 have shape \(4,\); expected \(n, 4\)"):
        pool_boxes(random_stages(2, GRIDS), [random_boxes(1, 64), torch.zeros(4)], 64)


@pytest.mark.parametrize("stages", [[4], [-5], []])
def test_stages_that_the_encoder_lacks(stages: list[int]) -> None:
    with pytest.raises(ValueError, match="indices into the encoder's 4 stages"):
        RoIAlignBoxProjector(CHANNELS, 10, stages=stages)


def test_stages_are_summed_in_a_width() -> None:
    pooled = StageSumBoxProjector(CHANNELS, None)
    assert pooled.in_channels == sum(CHANNELS) and not list(pooled.parameters())
    with pytest.raises(ValueError, match="stages are summed in the width of low-resolution tokens; give low_channels"):
        StageSumBoxProjector(CHANNELS, 10)


def test_depth_of_the_projector() -> None:
    with pytest.raises(ValueError, match="depth >= 1, found 0"):
        RoIAlignBoxProjector(CHANNELS, 10, depth=0)


@pytest.mark.parametrize("counts", [[3, 0, 7, 1], [4, 4], [0, 0], [9]])
@pytest.mark.parametrize("limit", [1 << 24, 500])
def test_pictures_pooled_together_are_as_one_by_one(
    counts: list[int], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, with and without slices."""
    generator = torch.Generator().manual_seed(0)
    stages = [torch.randn(len(counts), 6 << s, 32 >> s, 32 >> s, generator=generator) for s in range(3)]
    corners = [torch.rand(count, 2, 2, generator=generator) * 128 for count in counts]
    boxes = [own.sort(dim=1).values.flatten(1) for own in corners]
    apart = pool_boxes(stages, boxes, 128)
    for number, own in enumerate(boxes):
        (alone,) = pool_boxes([stage[number : number + 1] for stage in stages], [own], 128)
        assert torch.equal(alone, apart[number])
    monkeypatch.setattr(box_projector, "computes_together", lambda _: True)
    monkeypatch.setattr(box_projector, "MAX_INTERMEDIATE_ELEMENTS", limit)
    together = pool_boxes(stages, boxes, 128)
    for one, other in zip(apart, together, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
