"""Conv-Gate: golden values, identity at initialization, published names and sizes, grids that differ."""

import pytest
import torch
import torch.nn.functional as F

from mg_llava.models.fusion.conv_gate import ConvGateFusion
from mg_llava.models.interfaces import Seen, token_grid
from mg_llava.registry import MODELS

PUBLISHED_SHAPES = {
    "slow_conv.weight": (1536, 1536, 1, 1),
    "slow_conv.bias": (1536,),
    "slow_proj.weight": (1024, 1536, 1, 1),
    "slow_proj.bias": (1024,),
    "fast_conv.weight": (1024, 1, 7, 7),
    "fast_conv.bias": (1024,),
    "fast_proj.weight": (1024, 1024, 1, 1),
    "fast_proj.bias": (1024,),
    "gate.0.weight": (512, 2048),
    "gate.0.bias": (512,),
    "gate.2.weight": (1, 512),
    "gate.2.bias": (1,),
}


def filled_fusion(**kwargs: object) -> ConvGateFusion:
    """A small module in float64 whose tensors all hold ``0.3 * sin(0.7 i + 0.1)``."""
    fusion = ConvGateFusion(8, 12, **kwargs).double()
    with torch.no_grad():
        for parameter in fusion.parameters():
            index = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_((0.3 * torch.sin(0.7 * index + 0.1)).view_as(parameter))
    return fusion


def fuse(fusion: ConvGateFusion, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return fusion(low, Seen(maps=[high]))


def small_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    low = torch.cos(0.05 * torch.arange(2 * 16 * 8, dtype=torch.float64)).view(2, 16, 8)
    high = torch.sin(0.03 * torch.arange(2 * 12 * 16, dtype=torch.float64)).view(2, 12, 4, 4)
    return low, high


def test_golden_conv_gate(golden_conv_gate: dict[str, torch.Tensor]) -> None:
    parameters = {k.removeprefix("param."): v for k, v in golden_conv_gate.items() if k.startswith("param.")}
    fusion = ConvGateFusion(32, 48, gate_channels=16)
    fusion.load_state_dict(parameters, strict=True)
    fused = fusion(golden_conv_gate["low_res"], Seen(maps=[golden_conv_gate["high_res"]]))
    torch.testing.assert_close(fused, golden_conv_gate["fused"], rtol=1e-5, atol=1e-5)


def test_values_in_float64() -> None:
    fusion = filled_fusion()
    out = fuse(fusion, *small_inputs())
    first = [1.12771492, 1.29395110, 1.34298862, 1.24712950, 0.98371838, 0.73966740, 0.61677943, 0.60607587]
    last = [1.27793903, 1.41656468, 1.38032198, 1.18168819, 0.85209575, 0.60924817, 0.55651806, 0.66128161]
    expected = torch.tensor([first, last], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([out[0, 0], out[1, 15]]), expected, rtol=0, atol=6e-9)
    assert out.sum().item() == pytest.approx(4.8003041443, abs=1e-9)
    assert fusion.last_gate is not None
    gate = torch.tensor([0.0305083326, 0.0284000270], dtype=torch.float64)
    torch.testing.assert_close(fusion.last_gate, gate, rtol=0, atol=1e-10)


def test_formula_by_hand() -> None:
    """The equations of the class docstring, written with plain matrix products and a loop over the 7 x 7 window."""
    torch.manual_seed(5)
    fusion = ConvGateFusion(6, 10, gate_channels=4).double()
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    low = torch.randn(2, 9, 6, dtype=torch.float64)
    high = torch.randn(2, 10, 3, 3, dtype=torch.float64)
    p = dict(fusion.named_parameters())

    high_tokens = high.flatten(2).transpose(1, 2)
    high_tokens = F.gelu(high_tokens @ p["slow_conv.weight"][:, :, 0, 0].T + p["slow_conv.bias"])
    high_tokens = high_tokens @ p["slow_proj.weight"][:, :, 0, 0].T + p["slow_proj.bias"]
    windows = torch.zeros_like(low)
    for row in range(3):
        for column in range(3):
            for other_row in range(3):
                for other_column in range(3):
                    tap = p["fast_conv.weight"][:, 0, other_row - row + 3, other_column - column + 3]
                    windows[:, 3 * row + column] += tap * low[:, 3 * other_row + other_column]
    residual = F.gelu(windows + p["fast_conv.bias"]) @ p["fast_proj.weight"][:, :, 0, 0].T + p["fast_proj.bias"]
    low_tokens = low + residual
    mean = torch.cat([low_tokens, high_tokens], dim=-1).mean(dim=1)
    hidden = F.gelu(mean @ p["gate.0.weight"].T + p["gate.0.bias"])
    gate = torch.tanh(hidden @ p["gate.2.weight"].T + p["gate.2.bias"])
    torch.testing.assert_close(fuse(fusion, low, high), low_tokens + gate[:, None] * high_tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identity_at_initialization(dtype: torch.dtype) -> None:
    fusion = ConvGateFusion(16, 24).to(dtype)
    low, high = torch.randn(3, 25, 16).to(dtype), (100 * torch.randn(3, 24, 5, 5)).to(dtype)
    assert torch.equal(fuse(fusion, low, high), low)


def test_initialization() -> None:
    fusion = ConvGateFusion(16, 24)
    for name in ("slow_proj.weight", "fast_proj.weight", "slow_conv.bias", "fast_conv.bias"):
        assert not fusion.get_parameter(name).any(), name
    for conv in (fusion.slow_conv, fusion.fast_conv):
        fan_in, fan_out = torch.nn.init._calculate_fan_in_and_fan_out(conv.weight)
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.8 * bound < conv.weight.abs().max() <= bound
    assert fusion.gate[0].weight.any() and fusion.gate[0].bias.any()


def test_both_projections_learn_at_initialization() -> None:
    fusion = ConvGateFusion(16, 24)
    fuse(fusion, torch.randn(2, 9, 16), torch.randn(2, 24, 3, 3)).square().sum().backward()
    for name in ("slow_proj.weight", "fast_proj.weight"):
        assert fusion.get_parameter(name).grad.any(), name


@pytest.mark.parametrize("per", ["picture", "token", "channel"])
def test_the_gate_may_start_away_from_zero(per: str) -> None:
    low, high = (part.float() for part in small_inputs())
    torch.manual_seed(0)
    plain = ConvGateFusion(8, 12, gate_per=per)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    started = ConvGateFusion(8, 12, gate_per=per, gate_start=0.5)
    assert torch.equal(torch.rand(1), drawn), "as many numbers are drawn"
    changed = [
        name for name, value in plain.state_dict().items() if not torch.equal(value, started.state_dict()[name])
    ]
    assert changed == ["gate.2.bias"]
    torch.testing.assert_close(fuse(started, low, high), low)
    assert (started.last_gate - 0.5).abs().max() < 0.25
    grown = []
    for fusion in (plain, started):
        fuse(fusion, low, high).square().sum().backward()
        grown.append(fusion.slow_proj.weight.grad.norm())
    assert grown[1] > 1.5 * grown[0]
    for start in (-1, 1.5):
        with pytest.raises(ValueError, match="gate_start must be between -1 and 1, found"):
            ConvGateFusion(8, 12, gate_start=start)


def test_published_names_shapes_and_count() -> None:
    with torch.device("meta"):
        fusion = ConvGateFusion(1024, 1536)
    assert {name: tuple(value.shape) for name, value in fusion.state_dict().items()} == PUBLISHED_SHAPES
    assert sum(parameter.numel() for parameter in fusion.parameters()) == 6_085_121
    assert fusion.out_channels == 1024


def test_one_gate_for_each_picture() -> None:
    fusion = filled_fusion()
    low, high = small_inputs()
    alone = torch.cat([fuse(fusion, low[i : i + 1], high[i : i + 1]) for i in range(2)])
    together = fuse(fusion, low, high)
    torch.testing.assert_close(together, alone)
    assert fusion.last_gate is not None and fusion.last_gate.shape == (2,) and not fusion.last_gate.requires_grad


def test_inputs_are_left_alone() -> None:
    low, high = small_inputs()
    before = low.clone(), high.clone()
    fuse(filled_fusion(), low, high)
    assert torch.equal(low, before[0]) and torch.equal(high, before[1])


def test_unequal_grids_are_refused() -> None:
    low, _ = small_inputs()
    with pytest.raises(ValueError, match=r"grid is 4 x 4 but the high-resolution map is 6 x 5.*unequal_grids"):
        fuse(filled_fusion(), low, torch.zeros(2, 12, 6, 5, dtype=torch.float64))


@pytest.mark.parametrize("size", [(8, 8), (3, 3), (6, 5)])
def test_unequal_grids_are_interpolated(size: tuple[int, int]) -> None:
    low, _ = small_inputs()
    high = torch.randn(2, 12, *size, dtype=torch.float64)
    resized = F.interpolate(high, size=(4, 4), mode="bilinear", align_corners=False)
    expected = fuse(filled_fusion(), low, resized)
    torch.testing.assert_close(fuse(filled_fusion(unequal_grids="interpolate"), low, high), expected)


def test_interpolation_leaves_equal_grids_alone() -> None:
    low, high = small_inputs()
    assert torch.equal(fuse(filled_fusion(unequal_grids="interpolate"), low, high), fuse(filled_fusion(), low, high))


def test_tokens_that_form_no_square_are_refused() -> None:
    with pytest.raises(ValueError, match="17 low-resolution tokens do not form a square grid"):
        fuse(
            filled_fusion(), torch.zeros(1, 17, 8, dtype=torch.float64), torch.zeros(1, 12, 4, 4, dtype=torch.float64)
        )
    assert token_grid(576) == 24


def test_unknown_grid_policy() -> None:
    with pytest.raises(ValueError, match="'error' or 'interpolate', found 'crop'"):
        ConvGateFusion(8, 12, unequal_grids="crop")


def test_registry_name() -> None:
    fusion = MODELS.build({"type": "mg_llava.ConvGateFusion", "low_channels": 8, "high_channels": 12})
    assert isinstance(fusion, ConvGateFusion)
