"""Size and break-even of a feature cache against a cache on disk and closed forms."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config

from mg_llava.models.systems.mg_llava import MGLLaVA
from mg_llava.models.vision import FeatureExtractor
from mg_llava.planning import Skeleton, make_plan
from mg_llava.planning.feature_cache import describe_feature_cache, plan_feature_cache
from mg_llava.planning.flops import Flops
from mg_llava.planning.gpus import find_gpu
from tests import features, toy
from tests.planning.conftest import load_config

WORK = {"visual_encoder": 30.0, "visual_encoder_aux": 60.0, "box_pooling": 10.0, "llm": 300.0}
LEAF = "mg_llava_vicuna7b_pretrain"


def config_of(**source: object) -> Config:
    return Config({"train_dataloader": {"dataset": {"type": "LLaVADataset", "data_path": "none.json", **source}}})


@pytest.fixture
def model(toy_paths: dict[str, str]) -> MGLLaVA:
    return toy.build_model(toy_paths)


@pytest.mark.parametrize("fusion", ["ConvGateFusion", "PatchInfoMiningFusion"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_size_is_that_of_a_cache_on_disk(toy_paths, tmp_path, dtype, fusion):
    changes = {"fusion": {"type": f"mg_llava.{fusion}"}}
    model = toy.build_model(toy_paths, **changes)
    source = features.make_source(toy.write_data(tmp_path / "data", records=12), toy_paths["llm"])
    features.fill(source, tmp_path / "cache", FeatureExtractor.build(toy.model_config(toy_paths, **changes)), dtype)
    written = sum(path.stat().st_size for path in (tmp_path / "cache").iterdir() if path.suffix != ".json")
    plan = plan_feature_cache(config_of(), model, Flops(WORK, WORK, 0.0, 1), 10, 1.0, boxes=2)
    assert {cost.dtype: cost.total for cost in plan.costs}[dtype] == written


def test_size_at_full_size(skeleton: Callable[..., Skeleton]) -> None:
    whole = skeleton(LEAF).model
    plan = plan_feature_cache(load_config(LEAF), whole, Flops(WORK, WORK, 0.0, 1), 1000, 1.0, boxes=5)
    maps, boxes = 576 * 1024 + 576 * 1536, 6 * 2880
    for cost, size in zip(plan.costs, (4 * (maps + boxes), 2 * (maps + boxes), 2 * (maps + boxes), None), strict=True):
        expected = size or maps + 2 * 4 * (1024 + 1536) + 2 * boxes
        assert expected < cost.picture < expected + 512  # boxes, entry, alignment
    mining = skeleton(LEAF, fusion={"type": "mg_llava.PatchInfoMiningFusion"}).model
    large = plan_feature_cache(load_config(LEAF), mining, Flops(WORK, WORK, 0.0, 1), 1000, 1.0, boxes=5)
    finer = 192**2 * 192 + 96**2 * 384 + 48**2 * 768
    assert large.costs[2].picture - plan.costs[2].picture == 2 * finer
    low = skeleton(LEAF, fusion=None, box_projector=None, high_res_encoder=None).model
    alone = plan_feature_cache(load_config(LEAF), low, Flops(WORK, WORK, 0.0, 1), 1000, 1.0, boxes=5)
    assert 2 * 576 * 1024 < alone.costs[1].picture < 2 * 576 * 1024 + 256


def test_break_even(model: MGLLaVA) -> None:
    work = Flops(WORK, WORK, 0.0, 1)
    fast = plan_feature_cache(config_of(), model, work, 3600, throughput=100.0, boxes=0, disk=1e12)
    cost = fast.costs[0]
    assert fast.share == 0.25 and fast.pictures == 3600
    assert (cost.hours_to_fill, cost.hours_per_epoch, cost.hours_saved, cost.epochs) == (1.0, 3.0, 1.0, 1.0)
    assert cost.rate == pytest.approx(cost.picture / 3)
    # reading takes half a second more than training without encoders: it saves half a second of one
    slow = plan_feature_cache(config_of(), model, work, 3600, 100.0, boxes=0, disk=cost.picture / 3.5).costs[0]
    assert slow.hours_per_epoch == pytest.approx(3.5) and slow.hours_saved == pytest.approx(0.5)
    assert slow.epochs == pytest.approx(7)  # filling waits for the disk: 3.5 hours
    never = plan_feature_cache(config_of(), model, work, 3600, 100.0, boxes=0, disk=cost.picture / 5)
    assert never.costs[0].epochs is None and never.costs[0].hours_saved == pytest.approx(-1)
    text = "\n".join(describe_feature_cache(never))
    assert "it saves 25% of the FLOPs" in text and "never" in text and "int8" in text
    with pytest.raises(ValueError, match="disk is 0; it must be a positive number"):
        plan_feature_cache(config_of(), model, work, 10, 1.0, boxes=0, disk=0)


def test_repeated_records_are_kept_once(model: MGLLaVA, tmp_path: Path) -> None:
    data = toy.write_data(tmp_path, records=12)
    half = plan_feature_cache(
        config_of(**data, draw={"repeat": 0.5}), model, Flops(WORK, WORK, 0.0, 1), 6, 1.0, boxes=2
    )
    twice = plan_feature_cache(
        config_of(**data, draw={"repeat": 2}), model, Flops(WORK, WORK, 0.0, 1), 24, 1.0, boxes=2
    )
    assert half.pictures == 6 and twice.pictures == 12


def test_a_plan_has_it() -> None:
    plan = make_plan(load_config(LEAF), find_gpu("A100-80G"), disk=4e9)
    assert plan.features is not None and plan.features.pictures == 1_266_000 and plan.features.disk == 4e9
    assert plan.features.share == pytest.approx(1.174 / 23.85, rel=0.01)
    assert plan.to_dict()["features"]["costs"][3]["dtype"] == "int8"
