"""Training from features is training from pictures: losses, gradients, mixed batches, other encoders."""

import contextlib
import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset

from mg_llava.data.collate import collate
from mg_llava.data.dataset import LLaVADataset
from mg_llava.engine.features import FeatureCacheHook
from mg_llava.features import FEATURE_DTYPES, Features, pack_features, stack, unpack
from mg_llava.models.fusion.patch_info_mining import LastStagePatchInfoMiningFusion, PatchInfoMiningFusion
from mg_llava.models.interfaces import Fusion, Seen
from mg_llava.models.systems.mg_llava import MGLLaVA
from mg_llava.models.vision import CachedFeatures, FeatureExtractor, refuse_features
from tests import features, toy

TOLERANCE = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2, "int8": 1e-2}
"""Relative difference of the loss on the toy, whose random encoders and LLM are far from smooth."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return toy.write_data(tmp_path_factory.mktemp("data"), records=12)


@pytest.fixture(scope="module")
def model(toy_paths: dict[str, str]) -> MGLLaVA:
    return toy.build_model(toy_paths, "full").train()


@pytest.fixture(scope="module")
def extractor(toy_paths: dict[str, str]) -> FeatureExtractor:
    return FeatureExtractor.build(toy.model_config(toy_paths))


@pytest.fixture(scope="module")
def folders(data, toy_paths, extractor, tmp_path_factory) -> dict[str, Path]:
    """A filled folder for each dtype."""
    source, root = features.make_source(data, toy_paths["llm"]), tmp_path_factory.mktemp("features")
    for dtype in FEATURE_DTYPES:
        features.fill(source, root / dtype, extractor, dtype)
    return {dtype: root / dtype for dtype in FEATURE_DTYPES}


def accept(model: MGLLaVA, *sources: LLaVADataset) -> None:
    """What happens before a training."""
    dataset = ConcatDataset(sources)
    FeatureCacheHook().before_train(SimpleNamespace(model=model, train_dataloader=SimpleNamespace(dataset=dataset)))


def batch(*samples: dict[str, Any]) -> dict[str, Any]:
    return collate(samples)["data"]


def take(model: MGLLaVA, data: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """Loss and gradient norms by part."""
    model.zero_grad()
    loss = model(data)["loss"]
    loss.backward()
    norms = {
        part: sum(float(p.grad.square().sum()) for p in getattr(model, part).parameters() if p.grad is not None) ** 0.5
        for part in ("fuse_module", "projector", "bbox_projector", "llm")
    }
    return float(loss), norms


# two pictures, text alone, one picture
MIXED = (1, 3, 4)


@pytest.mark.parametrize("dtype", FEATURE_DTYPES)
def test_losses_and_gradients(model, data, toy_paths, folders, dtype):
    plain = features.make_source(data, toy_paths["llm"])
    cached = features.make_source(data, toy_paths["llm"], feature_cache=folders[dtype])
    accept(model, cached)
    seen = batch(*(plain[index] for index in MIXED))
    known = batch(*(cached[index] for index in MIXED))
    assert "canvas" not in known and "features" not in seen and len(known["boxes"]) == 3
    loss, norms = take(model, seen)
    monitor = dict(model.monitor)
    other, other_norms = take(model, known)
    assert other == pytest.approx(loss, rel=TOLERANCE[dtype])
    assert other_norms == pytest.approx(norms, rel=20 * TOLERANCE[dtype])
    assert set(monitor) == set(model.monitor)
    if dtype == "float32":
        assert other == loss and other_norms == norms
    else:
        assert other != loss


def test_encoders_do_not_run_and_may_be_gone(model, data, toy_paths, folders, monkeypatch):
    cached = features.make_source(data, toy_paths["llm"], feature_cache=folders["float32"])
    accept(model, cached)
    expected = take(model, batch(cached[0], cached[1]))
    for encoder in (model.visual_encoder, model.visual_encoder_aux):
        monkeypatch.setattr(encoder, "forward", None)
    assert take(model, batch(cached[0], cached[1])) == expected
    assert all(norm > 0 for norm in expected[1].values())
    _, norms = take(model, batch(cached[3]))  # text alone reaches every part all the same
    assert norms["llm"] > 0 and set(norms.values()) - {norms["llm"]} == {0.0}
    assert all(p.grad is not None for p in model.projector.parameters())


def test_batches_of_pictures_and_features(model, data, toy_paths, folders):
    plain = features.make_source(data, toy_paths["llm"])
    cached = features.make_source(data, toy_paths["llm"], feature_cache=folders["float32"])
    accept(model, cached)
    expected = take(model, batch(*(plain[index] for index in (0, 1, 3, 4))))
    both = batch(cached[0], plain[1], cached[3], cached[4])
    assert both["cached"] == [True, False, False, True] and len(both["canvas"]) == 2
    loss, norms = take(model, both)
    assert loss == pytest.approx(expected[0], rel=1e-5) and norms == pytest.approx(expected[1], rel=1e-4)


def test_features_of_other_encoders_are_refused(model, data, toy_paths, folders, tmp_path):
    cached = features.make_source(data, toy_paths["llm"], feature_cache=folders["float32"])
    fresh = copy.copy(model)
    fresh.cached = CachedFeatures(fresh)
    with pytest.raises(ValueError, match=r"were not compared .*FeatureCacheHook"):
        fresh(batch(cached[0]))
    other = toy.build_model(toy_paths, box_projector={"type": "mg_llava.RoIAlignBoxProjector", "bins": 7})
    with torch.no_grad():
        next(other.visual_encoder.parameters()).mul_(1.01)
    about = cached.features.cache.about["encoders"]
    with pytest.raises(
        ValueError, match=r"low_res_encoder.weights was \w+, now \w+; box_projector.bins was 56, now 7"
    ):
        other.cached.accept(about, "there")
    half = toy.build_model(toy_paths)
    half.visual_encoder_aux.bfloat16()
    with pytest.raises(ValueError, match=r"high_res_encoder.dtype was float32, now bfloat16"):
        half.cached.accept(about, "there")


def test_what_no_cache_can_stand_for_is_refused_before_it_is_filled(toy_paths):
    reader = toy.build_model(toy_paths)
    reader.visual_encoder.is_trained = True
    assert len(refuse_features(reader)) == 1
    with pytest.raises(ValueError, match=r"stands for frozen encoders, and low_res_encoder is trained$"):
        FeatureExtractor(reader)
    with pytest.raises(ValueError, match="low_res_encoder is trained; set feature_cache=None"):
        reader.cached.accept({}, "there")


class SecondStageFusion(Fusion):
    """A fusion from elsewhere that reads all maps: adds what the second one says on the average."""

    reads = "all"

    def __init__(self, low_channels: int, high_channels: int) -> None:
        super().__init__()
        self.out_channels = low_channels
        self.linear = torch.nn.Linear(toy.STAGE_CHANNELS[1], low_channels)

    def forward(self, low: torch.Tensor, high: Seen) -> torch.Tensor:
        return low + self.linear(high.maps[1].mean(dim=(2, 3)))[:, None]


FUSIONS = [PatchInfoMiningFusion, LastStagePatchInfoMiningFusion, SecondStageFusion]


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("dtype", FEATURE_DTYPES)
def test_a_fusion_reads_the_maps_that_it_names(data, toy_paths, tmp_path, fusion, dtype):
    settings = toy.model_config(toy_paths, fusion={"type": fusion})
    model = toy.build_model(toy_paths, fusion={"type": fusion}).train()
    extractor = FeatureExtractor.build(settings)
    plain = features.make_source(data, toy_paths["llm"])
    report = features.fill(plain, tmp_path, extractor, dtype)
    cached = features.make_source(data, toy_paths["llm"], feature_cache=tmp_path)
    accept(model, cached)
    loss, norms = take(model, batch(*(plain[index] for index in MIXED)))
    known = batch(*(cached[index] for index in MIXED))
    finer = [name for name in known["features"] if name.startswith("finer") and not name.endswith("range")]
    assert len(finer) == (3 if fusion.reads == "all" else 0) and len(extractor.sizes.get("finer", [])) == len(finer)
    assert report["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("*.features"))
    other, other_norms = take(model, known)
    assert other == pytest.approx(loss, rel=TOLERANCE[dtype])
    assert other_norms == pytest.approx(norms, rel=20 * TOLERANCE[dtype])
    if dtype == "float32":
        assert other == loss and other_norms == norms


def test_a_cache_of_all_maps_serves_who_reads_the_last(model, data, toy_paths, folders, tmp_path):
    mining = {"type": "mg_llava.PatchInfoMiningFusion"}
    plain = features.make_source(data, toy_paths["llm"])
    features.fill(plain, tmp_path, FeatureExtractor.build(toy.model_config(toy_paths, fusion=mining)))
    whole = features.make_source(data, toy_paths["llm"], feature_cache=tmp_path)
    accept(model, whole)
    assert take(model, batch(whole[0], whole[4])) == take(model, batch(plain[0], plain[4]))
    last = features.make_source(data, toy_paths["llm"], feature_cache=folders["float32"])
    lacking = r"cache .*float32 was filled .*holds the last map alone, and PatchInfoMiningFusion reads those of all"
    with pytest.raises(ValueError, match=lacking):
        accept(toy.build_model(toy_paths, fusion=mining), last)
    with pytest.raises(ValueError, match=r"something else \(finer is None, wanted \[\[256, 8\], .*all_maps is None"):
        features.fill(plain, folders["float32"], FeatureExtractor.build(toy.model_config(toy_paths, fusion=mining)))


def test_variants_read_what_they_need(data, toy_paths, folders, tmp_path):
    whole = features.make_source(data, toy_paths["llm"], feature_cache=folders["float32"])
    plain = features.make_source(data, toy_paths["llm"])
    for missing in ({"fusion": None}, {"box_projector": None}, {"fusion": None, "box_projector": None}):
        settings = toy.model_config(toy_paths, **missing)
        variant = toy.build_model(toy_paths, **missing)
        small = tmp_path / "_".join(missing)
        features.fill(plain, small, FeatureExtractor.build(settings))
        own = features.make_source(data, toy_paths["llm"], feature_cache=small)
        expected = float(variant(batch(plain[0], plain[1]))["loss"])
        for source in (whole, own):
            accept(variant, source)
            assert float(variant(batch(source[0], source[1]))["loss"]) == expected
        names = {"low"} | ({"high"} if "fusion" not in missing else set())
        assert set(own[0]["features"][0]) == names | ({"pooled"} if "box_projector" not in missing else set())
        model = toy.build_model(toy_paths)
        with pytest.raises(ValueError, match="the cache holds no"):
            model.cached.accept(own.features.cache.about["encoders"], "there")


def test_zero3_never_runs_encoders_in_some_processes_alone(toy_paths, data, folders, monkeypatch):
    cached = features.make_source(data, toy_paths["llm"], feature_cache=folders["float32"])
    model = toy.build_model(toy_paths).train()
    next(model.visual_encoder.parameters()).ds_id = 0  # as DeepSpeed marks parameters that are split
    monkeypatch.setattr("mg_llava.models.vision._whole", lambda parameter: contextlib.nullcontext())
    with pytest.raises(ValueError, match="ZeRO-3 needs the same modules"):
        accept(model, cached, features.make_source(data, toy_paths["llm"]))
    with pytest.raises(ValueError, match="ZeRO-3 needs the same modules"):
        options = {"feature_cache": folders["float32"], "missing_features": "picture"}
        accept(model, features.make_source(data, toy_paths["llm"], **options))
    accept(model, cached)
    for encoder in (model.visual_encoder, model.visual_encoder_aux):
        monkeypatch.setattr(encoder, "forward", None)
    assert take(model, batch(cached[3]))[0] > 0


def test_random_features_come_back():
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(2, 9, 5, generator=generator) * torch.tensor([1, 100, 0.01, 1, 0])
    high, pooled, objects = (torch.randn(*size, generator=generator) for size in ((2, 4, 3, 3), (3, 6), (2, 5, 7)))
    finer = tuple(torch.randn(2, 3, side, side, generator=generator) for side in (12, 6))
    found = Features(low, high, pooled, objects, finer)
    for dtype, bound in (("float32", 0), ("float16", 1e-3), ("bfloat16", 8e-3), ("int8", 1 / 255)):
        back = unpack(stack(pack_features(found, [1, 2], dtype)))
        assert len(back.finer) == 2 and len(back.tensors) == 6
        for exact, kept in zip(found.tensors, back.tensors, strict=True):
            spread = exact.abs().amax() if dtype != "int8" else 2 * exact.abs().amax()
            assert kept.shape == exact.shape and (kept.float() - exact).abs().max() <= bound * spread
    with pytest.raises(ValueError, match=r"up to 7.*e.04 do not fit into float16; keep them as bfloat16"):
        pack_features(Features(low + 70000, None, None), [0, 0], "float16")
    with pytest.raises(ValueError, match="'int4'; allowed: float32, float16, bfloat16, int8"):
        pack_features(found, [1, 2], "int4")
