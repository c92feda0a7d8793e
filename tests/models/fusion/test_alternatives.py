"""Channel concatenation and its cousins, patch info mining, the resampler: loops, identities, refusals."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mg_llava.models.encoders.convnext import check_size
from mg_llava.models.frame_pooling import FramePooling
from mg_llava.models.fusion.channel_concat import ChannelConcatFusion, ConvolvedConcatFusion, GatedConcatFusion
from mg_llava.models.fusion.conv_gate import ConvGateFusion
from mg_llava.models.fusion.patch_info_mining import LastStagePatchInfoMiningFusion, PatchInfoMiningFusion
from mg_llava.models.fusion.resampler import ResamplerFusion, ResamplerProjector, grid_positions
from mg_llava.models.interfaces import Fusion, Seen, Spec
from mg_llava.registry import MODELS
from tests import toy
from tests.models.objects.test_merger import read

LOW, HIGH, STAGES = 8, 12, (4, 8)


def filled(module: nn.Module) -> nn.Module:
    """A module in float64 with random parameters."""
    torch.manual_seed(1)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def inputs(side: int = 3, batch: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(batch, side**2, LOW).double(), torch.randn(batch, HIGH, side, side).double()


def rows(cells: Tensor) -> Tensor:
    return cells.flatten(2).transpose(1, 2)


# -- channels side by side ------------------------------------------------------------------------------------------


def test_channels_side_by_side() -> None:
    low, high = inputs()
    fusion = ChannelConcatFusion(LOW, HIGH)
    fused = fusion(low, Seen(maps=[high]))
    assert fused.shape[-1] == fusion.out_channels == LOW + HIGH and not list(fusion.parameters())
    assert torch.equal(fused[..., :LOW], low) and torch.equal(fused[..., LOW:], rows(high))


@pytest.mark.parametrize("kind", [ConvolvedConcatFusion, GatedConcatFusion])
def test_cousins_hold_the_terms_of_conv_gate(kind: type[Fusion]) -> None:
    low, high = inputs()
    gated, cousin = filled(ConvGateFusion(LOW, HIGH)), kind(LOW, HIGH).double()
    cousin.load_state_dict({k: v for k, v in gated.state_dict().items() if k in cousin.state_dict()})
    fused = cousin(low, Seen(maps=[high]))
    assert fused.shape[-1] == cousin.out_channels == 2 * LOW
    low_tokens, high_tokens = gated.convolve(low, Seen(maps=[high]))
    total = gated(low, Seen(maps=[high]))  # leaves its gate
    gate = gated.last_gate[:, None, None] if kind is GatedConcatFusion else 1.0
    torch.testing.assert_close(fused, torch.cat([low_tokens, gate * high_tokens], dim=-1))
    if kind is GatedConcatFusion:
        torch.testing.assert_close(fused[..., :LOW] + fused[..., LOW:], total)


@pytest.mark.parametrize("kind", [ConvolvedConcatFusion, GatedConcatFusion, ResamplerFusion])
def test_low_is_kept_at_initialization(kind: type[Fusion]) -> None:
    low, high = (item.float() for item in inputs())
    fused = kind(LOW, HIGH)(low, Seen(maps=[high]))
    kept, added = fused.chunk(2, dim=1 if kind is ResamplerFusion else 2)
    assert torch.equal(kept, low) and not added.any()


# -- gate -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("per", "shape"), [("picture", (2, 1, 1)), ("token", (2, 9, 1)), ("channel", (2, 1, LOW))])
def test_gates_by_loops(per: str, shape: tuple[int, ...]) -> None:
    low, high = inputs()
    fusion = filled(ConvGateFusion(LOW, HIGH, gate_per=per))
    fused = fusion(low, Seen(maps=[high]))
    own, added = fusion.convolve(low, Seen(maps=[high]))
    gates = torch.zeros(shape, dtype=torch.float64)
    for picture in range(2):
        both = torch.cat([own[picture], added[picture]], dim=-1)  # (9, 2 C_l)
        for place in range(shape[1]):
            seen = both[place] if per == "token" else both.mean(dim=0)
            hidden = F.gelu(fusion.gate[0].weight @ seen + fusion.gate[0].bias)
            gates[picture, place] = torch.tanh(fusion.gate[2].weight @ hidden + fusion.gate[2].bias)
    torch.testing.assert_close(fused, own + gates * added)
    torch.testing.assert_close(fusion.last_gate, gates.mean(dim=(1, 2)))


def test_an_unknown_gate() -> None:
    with pytest.raises(ValueError, match="gate_per must be one of picture, token, channel, found 'pixel'"):
        ConvGateFusion(LOW, HIGH, gate_per="pixel")


# -- patch info mining ----------------------------------------------------------------------------------------------


def mined(fusion: nn.Module, low: Tensor, whole: Tensor) -> Tensor:
    """Patch info mining by loops over tokens and the cells of their patches."""
    grid = math.isqrt(low.shape[1])
    m = whole.shape[-1] // grid
    out = low.clone()
    for picture in range(len(low)):
        for row in range(grid):
            for column in range(grid):
                cells = [whole[picture, :, row * m + i, column * m + j] for i in range(m) for j in range(m)]
                token = low[picture, row * grid + column][None]
                out[picture, row * grid + column] += read(fusion, token, torch.stack(cells))[0]
    return out


def test_mining_by_loops() -> None:
    low, _ = inputs()
    fine, coarse = torch.randn(2, STAGES[0], 6, 6).double(), torch.randn(2, STAGES[1], 3, 3).double()
    fusion = filled(PatchInfoMiningFusion(LOW, sum(STAGES)))
    upsampled = F.interpolate(coarse.float(), size=(6, 6), mode="bilinear", align_corners=False).double()
    expected = mined(fusion, low, torch.cat([fine, upsampled], dim=1))
    found = fusion(low, Seen(maps=[fine, coarse]))
    assert (found - expected).abs().max() < 1e-10
    assert (found - low).abs().max() > 0.1, "no identity before training, as in the source"


@pytest.mark.parametrize("is_kept", [True, False])
def test_processes_choose_alike_whether_cells_are_kept(monkeypatch: pytest.MonkeyPatch, is_kept: bool) -> None:
    """Making them again gathers split parameters again, so that the number of pictures must not decide."""
    module, made_again = "mg_llava.models.fusion.patch_info_mining", []
    channels, side = STAGES[0] + HIGH, 6
    monkeypatch.setattr(f"{module}._KEPT", side * side * channels * 8 - (not is_kept))
    monkeypatch.setattr(f"{module}.is_split", lambda _: True)
    monkeypatch.setattr(f"{module}.checkpoint", lambda mine, *piece, **_: made_again.append(1) or mine(*piece))
    fusion = filled(PatchInfoMiningFusion(LOW, channels))
    for pictures in (1, 2, 5):
        low = torch.randn(pictures, 9, LOW).double()
        maps = [torch.randn(pictures, STAGES[0], side, side).double(), torch.randn(pictures, HIGH, 3, 3).double()]
        fusion(low, Seen(maps=maps))
    assert len(made_again) == (0 if is_kept else 3)


@pytest.mark.parametrize("kept", [0, 16 << 20])
def test_mining_with_keys_and_values_is_the_same(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """Processes that gather split parameters make keys and values of all cells; outputs and gradients agree."""
    monkeypatch.setattr("mg_llava.models.fusion.patch_info_mining._KEPT", kept)
    low, last = inputs()
    fine = torch.randn(2, STAGES[0], 6, 6).double()
    fusion = filled(PatchInfoMiningFusion(LOW, STAGES[0] + HIGH))

    def mine() -> list[Tensor]:
        leaves = [item.clone().requires_grad_() for item in (low, fine, last)]
        fused = fusion(leaves[0], Seen(maps=leaves[1:]))
        return [fused.detach(), *torch.autograd.grad(fused.square().sum(), [*leaves, *fusion.parameters()])]

    found = mine()
    monkeypatch.setattr("mg_llava.models.fusion.patch_info_mining.is_split", lambda module: True)
    for own, expected in zip(found, mine(), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-6)  # maps are upsampled in float32


@pytest.mark.parametrize("m", [1, 2])
def test_mining_of_the_last_stage(m: int) -> None:
    low, _ = inputs()
    last = torch.randn(2, HIGH, 3 * m, 3 * m).double()
    fusion = filled(LastStagePatchInfoMiningFusion(LOW, HIGH))
    found = fusion(low, Seen(maps=[torch.zeros(2, 4, 24, 24), last]))
    torch.testing.assert_close(found, mined(fusion, low, last), rtol=0, atol=1e-10)
    if m == 1:  # softmax over one cell
        torch.testing.assert_close(found, low + fusion.attention.value(rows(last)))


def test_mining_from_zero_is_the_identity_and_learns() -> None:
    low, high = (item.float() for item in inputs())
    fusion = LastStagePatchInfoMiningFusion(LOW, HIGH, zero_init=True)
    fused = fusion(low, Seen(maps=[high]))
    assert torch.equal(fused, low)
    fused.square().sum().backward()
    assert fusion.attention.value[1].weight.grad.any()


@pytest.mark.parametrize("kind", [PatchInfoMiningFusion, LastStagePatchInfoMiningFusion])
@pytest.mark.parametrize(("grid", "view"), [(27, 384), (7, 224), (3, 300)])
def test_the_size_that_is_advised_is_taken(grid: int, view: int, kind: type[Fusion]) -> None:
    low = Spec("Low", view, (), (), tokens=grid**2)
    high = Spec("High", 320, (), (), stage_channels=(4, 8, 12, 16), stage_strides=(4, 8, 16, 32))
    (fault,) = kind.conflicts(low, high, {})
    found = re.search(r"use image_size=(\d+) or a multiple of it", fault)
    assert found is not None
    for times in (1, 2):
        advised = replace(high, image_size=times * int(found[1]))
        check_size(advised, "the encoder")
        assert advised.image_size >= view and not kind.conflicts(low, advised, {})


def test_no_size_is_advised_that_is_smaller_than_the_view() -> None:
    high = Spec("High", 320, (), (), stage_channels=(4, 8), stage_strides=(16, 32))
    for view, is_advised in ((224, True), (300, False)):
        (fault,) = ConvGateFusion.conflicts(Spec("Low", view, (), (), tokens=49), high, {})
        assert ("image_size=224" in fault) == is_advised and "unequal_grids='interpolate'" in fault


def test_mined_sizes() -> None:
    with torch.device("meta"):
        fusion = PatchInfoMiningFusion(1024, 2880)
    assert sum(p.numel() for p in fusion.parameters() if p.ndim == 2) == 1024 * 1024 + 2 * 2880 * 1024


# -- resampler ------------------------------------------------------------------------------------------------------


def test_positions_by_loops() -> None:
    channels, side = 8, 3
    table = grid_positions(side, channels)
    for row in range(side):
        for column in range(side):
            expected = []
            for place in (column, row):  # the column first
                angles = [place / 10000 ** (k / (channels / 4)) for k in range(channels // 4)]
                expected += [*map(math.sin, angles), *map(math.cos, angles)]
            torch.testing.assert_close(table[row * side + column], torch.tensor(expected))


def test_resampler_by_loops() -> None:
    projector = filled(ResamplerProjector(LOW, 16, grid=2, heads=2))
    tokens = torch.randn(1, 8, LOW).double()  # twice the grid
    seen = tokens[0] @ projector.kv_proj.weight.T
    seen = F.layer_norm(seen, (16,), projector.ln_kv.weight, projector.ln_kv.bias, 1e-6)
    positions = grid_positions(2, 16).double()
    query = F.layer_norm(projector.query, (16,), projector.ln_q.weight, projector.ln_q.bias, 1e-6) + positions
    (wq, wk, wv), (bq, bk, bv) = projector.attn.in_proj_weight.chunk(3), projector.attn.in_proj_bias.chunk(3)
    q, k, v = query @ wq.T + bq, (seen + positions.repeat(2, 1)) @ wk.T + bk, seen @ wv.T + bv
    out = torch.zeros(4, 16, dtype=torch.float64)
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        for place in range(4):
            scores = torch.tensor([q[place, part] @ k[other, part] / 8**0.5 for other in range(8)]).double()
            out[place, part] = scores.softmax(dim=0) @ v[:, part]
    out = out @ projector.attn.out_proj.weight.T + projector.attn.out_proj.bias
    out = F.layer_norm(out, (16,), projector.ln_post.weight, projector.ln_post.bias, 1e-6) @ projector.proj
    torch.testing.assert_close(projector(tokens)[0], out)


def test_heads_divide_the_width() -> None:
    with torch.device("meta"):
        assert ResamplerProjector(1024, 4096, grid=24).attn.num_heads == 8
        assert ResamplerProjector(1024, 1, grid=24).attn.num_heads == 1  # without an LLM


def test_the_resampler_in_a_system(toy_paths: dict[str, str]) -> None:
    model = toy.build_model(toy_paths, **RESAMPLED)
    assert model.tokens_of(1, 0) == 4 and model.projector.grid == 2
    canvas = torch.zeros(1, 3, toy.CANVAS, toy.CANVAS, dtype=torch.uint8)
    assert [len(item.tokens) for item in model.encode(canvas, [torch.zeros(0, 4)])[0]] == [4, 0]
    with pytest.raises(ValueError, match=r"3 x 3 queries, and the 8 tokens of a canvas are no multiple"):
        toy.build_model(toy_paths, **{**RESAMPLED, "projector": {**RESAMPLED["projector"], "grid": 3}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": 0}, "grid is 0; it must be a whole number of at least 1"),
        ({"grid": -2}, "grid is -2; "),
        ({"grid": None}, "grid is None; "),
        ({"grid": 2.0}, "grid is 2.0; "),
        ({"heads": 0}, "heads is 0, must be at least 1"),
        ({"heads": -2}, "heads is -2, "),
    ],
)
def test_queries_that_cannot_be(settings: dict[str, Any], message: str, toy_paths: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"these parts do not go together: projector: {message}"):
        toy.build_model(toy_paths, **{**RESAMPLED, "projector": {**RESAMPLED["projector"], **settings}})


def test_places_of_tokens_are_not_mixed_up(toy_paths: dict[str, str], tmp_path: Path) -> None:
    paths = toy_paths | {"clip": str(toy.write_clip(tmp_path / "clip", image_size=56))}
    low_only = {"llm": None, "high_res_encoder": None, "fusion": None, "box_projector": None}

    def build(**settings: int) -> Any:
        return MODELS.build(toy.model_config(paths, **low_only, projector={**RESAMPLED["projector"], **settings}))

    assert [build(**settings).tokens_of(1, 0) for settings in ({}, {"grid": 4}, {"grid": 1})] == [16, 16, 1]
    with pytest.raises(ValueError, match="2 x 2 queries, and the 16 tokens of a canvas are on another grid"):
        build(grid=2)


RESAMPLED = {"fusion": {"type": "mg_llava.ResamplerFusion"}, "projector": {"type": "mg_llava.ResamplerProjector"}}
POOLERS = {name: {"type": "mg_llava.FramePooling", "side": 2} for name in ("frame_pooler", "object_pooler")}


@pytest.mark.parametrize("fusion", [RESAMPLED["fusion"], {"type": "mg_llava.ConvGateFusion"}], ids=["2 N", "N"])
@pytest.mark.parametrize("grid", [1, 2])
def test_frames_and_object_images_have_the_tokens_that_are_counted(
    grid: int, fusion: dict[str, str], toy_paths: dict[str, str]
) -> None:
    projector = {**RESAMPLED["projector"], "grid": grid}
    poolers = {**POOLERS, "object_pooler": {"type": "mg_llava.FramePooling", "side": 1}}
    model = toy.build_model(toy_paths, fusion=fusion, projector=projector, **poolers)
    canvas = torch.zeros(1, 3, toy.CANVAS, toy.CANVAS, dtype=torch.uint8)
    with torch.no_grad():
        (picture,), ((crop,),) = model.encode(canvas, [torch.zeros(0, 4)]), model.see_crops(canvas)
    frame = model.as_frame(picture)
    found = [segment.length for segment in (picture[0], frame[0], crop)]
    counts = model.token_count
    assert found == [counts.per_canvas, counts.per_frame, counts.per_crop] == [grid**2, 1, grid**2]


def test_tokens_that_are_no_square_are_not_pooled(toy_paths: dict[str, str]) -> None:
    message = r"frame_pooler: 8 tokens come to it, which form no square grid to pool; use a projector"
    for pooler in (POOLERS["frame_pooler"], FramePooling()):
        with pytest.raises(ValueError, match=f"these parts do not go together: {message}") as caught:
            toy.build_model(toy_paths, fusion=RESAMPLED["fusion"], frame_pooler=pooler)
        assert "object_pooler" not in str(caught.value) and "encoder" not in str(caught.value)
    wrong = {"box_projector": {"type": "mg_llava.MLPProjector"}, "fusion": RESAMPLED["fusion"]}
    with pytest.raises(ValueError, match=rf"box_projector is a MLPProjector.*; {message}"):
        toy.build_model(toy_paths, **wrong, **POOLERS)
    assert toy.build_model(toy_paths, **RESAMPLED, **POOLERS).token_count.per_frame == 1


# -- all ------------------------------------------------------------------------------------------------------------


ALL = [ChannelConcatFusion, ConvolvedConcatFusion, GatedConcatFusion, LastStagePatchInfoMiningFusion, ResamplerFusion]


@pytest.mark.parametrize("kind", ALL)
def test_a_picture_is_fused_alone_as_in_a_batch(kind: type[Fusion]) -> None:
    low, high = inputs()
    fusion = filled(kind(LOW, HIGH))
    together = fusion(low, Seen(maps=[high]))
    alone = [fusion(low[i : i + 1], Seen(maps=[high[i : i + 1]])) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert together.shape == (2, fusion.out_tokens(9), fusion.out_channels)


@pytest.mark.parametrize("kind", ALL)
def test_bfloat16(kind: type[Fusion]) -> None:
    low, high = inputs()
    fusion = filled(kind(LOW, HIGH))
    exact = fusion(low, Seen(maps=[high]))
    rough = fusion.bfloat16()(low.bfloat16(), Seen(maps=[high.bfloat16()]))
    assert rough.dtype == torch.bfloat16
    assert (rough.double() - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize("kind", [ChannelConcatFusion, ResamplerFusion])
def test_unequal_grids(kind: type[Fusion]) -> None:
    low, _ = inputs()
    wide = torch.randn(2, HIGH, 6, 6).double()
    with pytest.raises(ValueError, match="grid is 3 x 3 but the high-resolution map is 6 x 6"):
        filled(kind(LOW, HIGH))(low, Seen(maps=[wide]))
    resized = F.interpolate(wide, size=(3, 3), mode="bilinear", align_corners=False)
    fused = filled(kind(LOW, HIGH, unequal_grids="interpolate"))(low, Seen(maps=[wide]))
    torch.testing.assert_close(fused, filled(kind(LOW, HIGH))(low, Seen(maps=[resized])))


def test_what_does_not_go_together_is_refused(toy_paths: dict[str, str]) -> None:
    config = toy.model_config(toy_paths, fusion={"type": "mg_llava.PatchInfoMiningFusion"})
    config["high_res_encoder"] = {**config["high_res_encoder"], "image_size": 96}
    config["box_projector"] = {"type": "mg_llava.MLPProjector"}
    model = {**config, "fusion": {"type": "mg_llava.ConvGateFusion"}}
    assert MODELS.build({**config, "box_projector": None}).tokens_of(1, 0) == 4  # 24 cells fall into 2 x 2 patches
    with pytest.raises(ValueError, match=r"box_projector is a MLPProjector.*; the low-resolution encoder has a 2 x 2"):
        MODELS.build(model)
