"""The whole model: equal to the dense oracle, one row per sample whatever the mix, trainable in every batch."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from torch import Tensor, nn

import mg_llava.models as parts
from mg_llava.data.collate import collate
from mg_llava.models.encoders.views import resample
from mg_llava.models.losses.language import token_loss
from mg_llava.models.parts import try_part
from mg_llava.models.systems.mg_llava import MGLLaVA
from mg_llava.registry import MODELS
from mg_llava.tokens import IMAGE_TOKEN_INDEX, VIDEO_TOKEN_INDEX
from tests import toy
from tests.models.oracle import Oracle

MIXED = [(9, 1), (6, 0), (12, 2), (7, 1)]
"""Text ids and pictures of each sample."""


def batch_of(instances: list[dict[str, Any]]) -> dict[str, Any]:
    return collate(instances)["data"]


def without_boxes(instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item | {"boxes": [torch.zeros(0, 4) for _ in item["boxes"]]} for item in instances]


@pytest.fixture(scope="module")
def model(toy_paths: dict[str, str]) -> MGLLaVA:
    """Stage 1, in eval mode; tests leave it as they find it."""
    return toy.build_model(toy_paths).eval()


@pytest.fixture(scope="module")
def tuned(toy_paths: dict[str, str]) -> MGLLaVA:
    """Stage 2, in eval mode; tests leave it as they find it."""
    return toy.build_model(toy_paths, "full").eval()


@pytest.fixture()
def training(tuned: MGLLaVA) -> MGLLaVA:
    """Stage 2 in training mode without gradients, put back afterwards."""
    tuned.train()
    tuned.zero_grad(set_to_none=True)
    yield tuned
    tuned.zero_grad(set_to_none=True)
    tuned.eval()


# -- the oracle -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle(toy_paths: dict[str, str], tuned: MGLLaVA, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    path = tmp_path_factory.mktemp("oracle") / "iter_1.pth"
    torch.save({"state_dict": tuned.state_dict()}, path)
    return Oracle(toy_paths, str(path))


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_oracle_embeddings_logits_and_loss(tuned: MGLLaVA, oracle: Oracle, seed: int) -> None:
    instances = toy.make_batch(MIXED, seed=seed)
    data = batch_of(instances)
    with torch.no_grad():
        expected = oracle.forward(instances)
        output = tuned(data, mode="tensor")
        loss = tuned(data, mode="loss")["loss"]
    inputs = output["inputs"]
    close(inputs.inputs_embeds, expected["embeddings"])
    assert torch.equal(inputs.labels, expected["labels"])
    assert torch.equal(inputs.attention_mask.long(), expected["mask"])
    assert torch.equal(inputs.position_ids, expected["positions"])
    close(output["logits"][inputs.attention_mask], expected["logits"][inputs.attention_mask])
    close(loss, expected["loss"])


def gradient_norms(model: MGLLaVA) -> dict[str, float]:
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            part = name.split(".", 1)[0]
            squares[part] = squares.get(part, 0.0) + parameter.grad.double().square().sum().item()
    return {part: square**0.5 for part, square in squares.items()}


def test_oracle_gradient_norms(training: MGLLaVA, oracle: Oracle) -> None:
    instances = toy.make_batch(MIXED)
    training(batch_of(instances))["loss"].backward()
    expected = oracle.gradient_norms(instances)
    assert set(expected) == {"llm", "fuse_module", "projector", "bbox_projector"}
    assert gradient_norms(training) == pytest.approx(expected, rel=1e-4)
    for key, parameter in oracle.p.items():
        close(training.get_parameter(key).grad, parameter.grad)


def test_oracle_generated_ids(tuned: MGLLaVA, oracle: Oracle) -> None:
    instances = toy.make_batch(MIXED, seed=4)
    expected = [oracle.generate(instance, 8, end=2) for instance in instances]
    generated = tuned.generate(batch_of(instances), max_new_tokens=8)
    assert [row.tolist() for row in generated] == expected
    assert len({tuple(row) for row in expected}) > 1  # the samples matter


def test_every_branch_matters(model: MGLLaVA) -> None:
    """The toy weights are such that no branch could be left out unnoticed."""
    instances = toy.make_batch([(9, 1)], seed=2)
    data = batch_of(instances)
    other_boxes = batch_of([instances[0] | {"boxes": [torch.tensor([[0.0, 0, 40, 40], [3, 3, 9, 9]])]}])
    with torch.no_grad():
        ((visual, boxes),) = model.encode(data["canvas"], data["boxes"])
        low_only = model.projector(model.visual_encoder(torch.randn(1, 3, 28, 28)).tokens)[0]
        ((same, moved),) = model.encode(data["canvas"], other_boxes["boxes"])
    assert [segment.kind for segment in (visual, boxes, same, moved)] == ["visual", "object"] * 2
    assert not torch.allclose(visual.tokens, low_only, atol=0.1)
    assert torch.equal(visual.tokens, same.tokens)
    assert boxes.tokens.shape != moved.tokens.shape or not torch.allclose(boxes.tokens, moved.tokens)


# -- rows -----------------------------------------------------------------------------------------------------------


def test_two_text_only_samples_give_two_rows(model: MGLLaVA) -> None:
    data = batch_of(toy.make_batch([(6, 0), (4, 0)]))
    assert "canvas" not in data
    for training in (False, True):
        model.train(training)
        output = model(data, mode="tensor")
        assert output["logits"].shape == (2, 6, 300)
        assert output["inputs"].attention_mask.sum(dim=1).tolist() == [6, 4]
    model.eval()


def test_a_training_without_losses_is_named(toy_paths: dict[str, str]) -> None:
    model, batch = toy.build_model(toy_paths, losses=[]), batch_of(toy.make_batch([(6, 1), (4, 0)]))
    for train in (model, model.loss_counts):
        with pytest.raises(ValueError, match="losses is empty, so that there is nothing to train on; remove it for"):
            train(batch)
    assert len(model(batch, mode="predict")) == len(batch["input_ids"])


def per_sample_losses(model: MGLLaVA, instances: list[dict[str, Any]]) -> Tensor:
    with torch.no_grad():
        output = model(batch_of(instances), mode="tensor")
    return token_loss(output["logits"], output["inputs"].labels, reduction="none")


@settings(max_examples=12, derandomize=True)
@given(
    samples=st.lists(st.tuples(st.integers(5, 14), st.integers(0, 2)), min_size=2, max_size=4),
    seed=st.integers(0, 50),
)
def test_loss_alone_equals_loss_in_a_batch(model: MGLLaVA, samples: list[tuple[int, int]], seed: int) -> None:
    instances = toy.make_batch(samples, seed=seed)
    together = per_sample_losses(model, instances)
    alone = torch.cat([per_sample_losses(model, [instance]) for instance in instances])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_generation_in_a_batch_equals_generation_alone(model: MGLLaVA, order: list[int]) -> None:
    instances = toy.make_batch(MIXED, seed=5)
    alone = [model.generate(batch_of([instance]), max_new_tokens=6)[0] for instance in instances]
    together = model.generate(batch_of([instances[index] for index in order]), max_new_tokens=6)
    for index, row in zip(order, together, strict=True):
        assert torch.equal(row, alone[index])


def test_boxes_belong_to_their_picture(model: MGLLaVA) -> None:
    """Changing the boxes of a sample's second picture leaves everything before their tokens as it was."""
    (instance,) = toy.make_batch([(9, 2)], seed=3)
    first, second = torch.tensor([[5.0, 5, 30, 30]]), torch.tensor([[20.0, 10, 60, 40]])
    with torch.no_grad():
        one = model.merge(batch_of([instance | {"boxes": [first, first]}])).inputs_embeds[0]
        other = model.merge(batch_of([instance | {"boxes": [first, second]}])).inputs_embeds[0]
    differing = (one != other).any(dim=-1).nonzero().flatten().tolist()
    assert differing == [1 + 5 + 4]  # <s>, 4 + 1 tokens of the first picture, 4 of the second, its box


# -- training -------------------------------------------------------------------------------------------------------

BATCHES = {
    "text only": [(6, 0), (4, 0)],
    "pictures": [(9, 1), (12, 2)],
    "mixed": MIXED,
    "no boxes": [(9, 1), (6, 0)],
}


@pytest.fixture(scope="module")
def trained_models(toy_paths: dict[str, str]) -> dict[tuple[str, bool], MGLLaVA]:
    models = {}
    for tuning in ("frozen", "full", "lora"):
        for checkpointing in (False, True):
            llm = toy.model_config(toy_paths, tuning)["llm"] | {"gradient_checkpointing": checkpointing}
            models[tuning, checkpointing] = toy.build_model(toy_paths, tuning, llm=llm).train()
    return models


@pytest.mark.parametrize("kind", list(BATCHES))
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tuning", ["frozen", "full", "lora"])
def test_every_trainable_parameter_has_a_gradient(
    trained_models: dict[tuple[str, bool], MGLLaVA], tuning: str, checkpointing: bool, kind: str
) -> None:
    model = trained_models[tuning, checkpointing]
    assert getattr(model.llm, "is_gradient_checkpointing", False) == checkpointing
    model.zero_grad(set_to_none=True)
    instances = toy.make_batch(BATCHES[kind])
    model(batch_of(without_boxes(instances) if kind == "no boxes" else instances))["loss"].backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    assert not frozen
    norms = gradient_norms(model)
    assert (norms["fuse_module"] > 0) == (norms["projector"] > 0) == (kind != "text only")
    assert (norms["bbox_projector"] > 0) == (kind in ("pictures", "mixed"))
    assert (norms.get("llm", 0) > 0) == (tuning != "frozen")


def test_checkpointing_changes_no_gradient(trained_models: dict[tuple[str, bool], MGLLaVA]) -> None:
    data = batch_of(toy.make_batch(MIXED))
    grads = []
    for checkpointing in (False, True):
        model = trained_models["full", checkpointing]
        model.zero_grad(set_to_none=True)
        model(data)["loss"].backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, gradient in grads[0].items():
        torch.testing.assert_close(gradient, grads[1][name], rtol=1e-5, atol=1e-6)


def test_zero_weight_changes_no_loss(training: MGLLaVA) -> None:
    for kind, samples in BATCHES.items():
        data = batch_of(toy.make_batch(samples))
        with_gradients = training(data)["loss"].detach()
        with torch.no_grad():
            assert torch.equal(with_gradients, training(data)["loss"]), kind


def test_gradients_do_not_depend_on_the_mode(training: MGLLaVA) -> None:
    data = batch_of(toy.make_batch(BATCHES["text only"]))
    training.eval()
    training(data)["loss"].backward()
    assert all(p.grad is not None for p in training.parameters() if p.requires_grad)


def test_the_same_batch_twice_gives_the_same_loss(toy_paths: dict[str, str], tmp_path: Path) -> None:
    """In training mode too, though the ConvNeXt has stochastic depth."""
    folder = shutil.copytree(toy_paths["convnext"], tmp_path / "convnext")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["timm_model_kwargs"]["drop_path_rate"] = 0.9
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = toy.build_model(toy_paths | {"convnext": str(folder)}, "full").train()
    data = batch_of(toy.make_batch(MIXED))
    with torch.no_grad():
        losses = [model(data)["loss"] for _ in range(3)]
        model.eval()
        losses.append(model(data)["loss"])
    assert all(torch.equal(loss, losses[0]) for loss in losses)


def test_training_mode_reaches_all_but_the_encoders(training: MGLLaVA) -> None:
    assert training.llm.training and training.projector.training and training.fuse_module.training
    assert not training.visual_encoder.training and not training.visual_encoder_aux.training


def test_split_parameters_make_the_encoders_run(toy_paths: dict[str, str]) -> None:
    """Where a process has to take part in gathering every module, a batch without pictures runs all of them."""
    model = toy.build_model(toy_paths).train()
    ran = []
    for name in ("visual_encoder", "visual_encoder_aux"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: ran.append(name))
    data = batch_of(toy.make_batch([(6, 0)]))
    model(data)
    assert not ran
    next(model.visual_encoder.parameters()).ds_id = 0
    loss = model(data)["loss"]
    assert ran == ["visual_encoder", "visual_encoder_aux"]
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.bbox_projector.parameters())


def test_loss_without_labels_is_finite(training: MGLLaVA) -> None:
    instances = toy.make_batch(MIXED)
    for instance in instances:
        instance["labels"] = torch.full_like(instance["labels"], -100)
    loss = training(batch_of(instances))["loss"]
    assert loss == 0
    loss.backward()
    assert all(not p.grad.isnan().any() for p in training.parameters() if p.requires_grad)
    assert per_sample_losses(training, instances).tolist() == [0.0] * 4


def test_token_loss_is_hugging_faces() -> None:
    logits, labels = torch.randn(2, 5, 7), torch.tensor([[1, 2, -100, 3, 4], [-100, -100, 6, -100, 5]])
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(token_loss(logits, labels), expected)
    rows = token_loss(logits, labels, reduction="none")
    torch.testing.assert_close((rows * torch.tensor([3.0, 2.0])).sum() / 5, expected)


def test_monitor(model: MGLLaVA) -> None:
    data = batch_of(toy.make_batch([(9, 1), (6, 0)], seed=2))
    model.train()
    model(data)
    model.eval()
    assert set(model.monitor) == {"low_norm", "high_norm", "box_norm", "text_norm", "gate"}
    assert all(value.ndim == 0 and not value.requires_grad and value > -1 for value in model.monitor.values())
    embedding = model.llm.get_input_embeddings().weight
    words = [
        i for row, mask in zip(data["input_ids"], data["attention_mask"], strict=True) for i in row[mask].tolist()
    ]
    expected = embedding[[word for word in words if word != IMAGE_TOKEN_INDEX]].norm(dim=-1).mean()
    torch.testing.assert_close(model.monitor["text_norm"], expected)  # padding and placeholders do not count
    torch.testing.assert_close(model.monitor["gate"], model.fuse_module.last_gate.mean())


def test_a_batch_without_pictures_says_nothing_of_them(model: MGLLaVA) -> None:
    model.train()
    model.monitor.clear()
    model(batch_of(toy.make_batch([(9, 0)])))
    model.eval()
    assert set(model.monitor) == {"text_norm"}


def test_half_precision_training(toy_paths: dict[str, str]) -> None:
    """Frozen parts in bfloat16, trained ones in float32, with and without autocast."""
    config = toy.model_config(toy_paths)
    half = {name: config[name] | {"dtype": "bfloat16"} for name in ("llm", "low_res_encoder", "high_res_encoder")}
    model = toy.build_model(toy_paths, **half).train()
    data = batch_of(toy.make_batch(MIXED))
    for autocast in (False, True):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(data)["loss"]
        loss.backward()
        assert loss.isfinite() and loss.dtype == torch.float32
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model.bfloat16()
    assert model(data)["loss"].isfinite()


# -- generation -----------------------------------------------------------------------------------------------------


def test_predict_is_generate_and_needs_no_labels(model: MGLLaVA) -> None:
    data = batch_of(toy.make_batch([(9, 1), (6, 0)]))
    del data["labels"]
    predicted, generated = model(data, mode="predict"), model.generate(data)
    assert all(torch.equal(one, other) for one, other in zip(predicted, generated, strict=True))
    assert all(row.ndim == 1 and row.dtype == torch.int64 and len(row) <= 100 for row in predicted)


def test_generation_leaves_the_mode_as_it_was(model: MGLLaVA) -> None:
    data = batch_of(toy.make_batch([(6, 1)]))
    for training in (True, False):
        model.train(training)
        model.generate(data, max_new_tokens=1)
        assert model.training is training and model.llm.training is training
    model.eval()


def test_generation_in_training_mode_is_that_of_eval_mode(model: MGLLaVA) -> None:
    data = batch_of(toy.make_batch(MIXED))
    expected = model.generate(data, max_new_tokens=4)
    model.train()
    found = model.generate(data, max_new_tokens=4)
    model.eval()
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("as_list", [False, True])
def test_answers_end_before_the_end_token(model: MGLLaVA, as_list: bool) -> None:
    data = batch_of(toy.make_batch(MIXED, seed=5))
    plain = model.generate(data, max_new_tokens=6, eos_token_id=299)
    end = int(plain[0][2])
    cut = model.generate(data, max_new_tokens=6, eos_token_id=[end, 298] if as_list else end)
    for whole, part in zip(plain, cut, strict=True):
        ids = whole.tolist()
        assert part.tolist() == (ids[: ids.index(end)] if end in ids else ids)


def test_generation_reads_rows_under_the_condition_of_their_pictures(
    model: MGLLaVA, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = batch_of(toy.make_batch(MIXED, seed=5))
    plain = model.generate(data, max_new_tokens=6, eos_token_id=299)
    end = int(plain[0][2])
    lasts = [row.tolist().index(end) if end in row.tolist() else 5 for row in plain]
    pictures = [n for _, n in MIXED]
    expected = [sum(n for n, last in zip(pictures, lasts, strict=True) if last >= step) for step in range(6)]
    found: list[int] = []
    monkeypatch.setattr(model, "condition", lambda seeing: nullcontext(found.append(len(seeing))))
    model.generate(data, max_new_tokens=6, eos_token_id=end)
    assert found == expected and expected[0] > expected[3]


def test_gradient_checkpointing_does_not_disturb_generation(
    toy_paths: dict[str, str], model: MGLLaVA, trained_models: dict[tuple[str, bool], MGLLaVA]
) -> None:
    data = batch_of(toy.make_batch(MIXED))
    one = model.generate(data, max_new_tokens=4)
    other = trained_models["frozen", True].generate(data, max_new_tokens=4)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# -- parts ----------------------------------------------------------------------------------------------------------

VARIANTS = {
    "low only": {"high_res_encoder": None, "fusion": None, "box_projector": None},
    "objects": {"fusion": None},
    "fusion": {"box_projector": None},
    "full": {},
}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_variants_of_the_ablation(toy_paths: dict[str, str], name: str) -> None:
    model = toy.build_model(toy_paths, **VARIANTS[name]).train()
    for samples in (MIXED, [(6, 0), (4, 0)]):
        data = batch_of(toy.make_batch(samples))
        model.zero_grad(set_to_none=True)
        model(data)["loss"].backward()
        assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    pictures = toy.make_batch(MIXED, seed=1)
    boxes = sum(len(item) for instance in pictures for item in instance["boxes"])
    lengths = model.merge(batch_of(pictures)).attention_mask.sum()
    assert lengths == sum(n for n, _ in MIXED) + 3 * 4 + 4 - 4 + (boxes if model.bbox_projector is not None else 0)
    assert len(model.generate(batch_of(pictures), max_new_tokens=2)) == 4
    assert model.canvas_size == (28 if name == "low only" else toy.CANVAS)


def test_a_variant_is_the_full_model_without_the_part(toy_paths: dict[str, str], model: MGLLaVA) -> None:
    data = batch_of(toy.make_batch(MIXED))
    state = model.state_dict()
    variant = toy.build_model(toy_paths, box_projector=None).eval()
    variant.load_state_dict({key: v for key, v in state.items() if "bbox" not in key}, strict=False)
    no_boxes = data | {"boxes": [torch.zeros(0, 4)] * len(data["boxes"])}
    with torch.no_grad():
        torch.testing.assert_close(variant(data)["loss"], model(no_boxes)["loss"])


def test_parts_as_classes_and_as_modules(toy_paths: dict[str, str], model: MGLLaVA) -> None:
    names = toy.model_config(toy_paths)
    classes = Config(
        {
            key: value | {"type": getattr(parts, value["type"].removeprefix("mg_llava."))}
            for key, value in names.items()
            if isinstance(value, dict)
        }
        | {"type": parts.MGLLaVA}
    )
    built = MODELS.build(classes.to_dict()), MODELS.build(Config({"model": names}).model)
    modules = {key: MODELS.build(names[key]) for key in ("llm", "low_res_encoder", "high_res_encoder")}
    modules["fusion"] = parts.ConvGateFusion(toy.CLIP_WIDTH, toy.STAGE_CHANNELS[-1])
    modules["box_projector"] = parts.RoIAlignBoxProjector(toy.STAGE_CHANNELS, toy.LLM_WIDTH)
    modules["projector"] = parts.MLPProjector(toy.CLIP_WIDTH, toy.LLM_WIDTH)
    data = batch_of(toy.make_batch(MIXED))
    losses = []
    for other in (*built, parts.MGLLaVA(**modules)):
        assert other.load_state_dict(model.state_dict(), strict=False).missing_keys == []
        with torch.no_grad():
            losses.append(other.eval()(data)["loss"])
    assert all(torch.equal(loss, losses[0]) for loss in losses)


def test_config_is_left_alone(toy_paths: dict[str, str]) -> None:
    config = toy.model_config(toy_paths)
    before = json.dumps(config)
    MODELS.build(config)
    assert json.dumps(config) == before


def test_batch_is_left_alone(training: MGLLaVA) -> None:
    data = batch_of(toy.make_batch(MIXED))
    before = {key: value.clone() for key, value in data.items() if isinstance(value, Tensor)}
    boxes = [item.clone() for item in data["boxes"]]
    training(data)
    training.generate(data, max_new_tokens=1)
    assert all(torch.equal(data[key], value) for key, value in before.items())
    assert all(torch.equal(one, other) for one, other in zip(data["boxes"], boxes, strict=True))


def test_interpolating_fusion_takes_other_grids(toy_paths: dict[str, str]) -> None:
    config = toy.model_config(toy_paths)
    high = config["high_res_encoder"] | {"image_size": 96}
    fusion = config["fusion"] | {"unequal_grids": "interpolate"}
    model = toy.build_model(toy_paths, high_res_encoder=high, fusion=fusion).train()
    for samples in (MIXED, [(6, 0)]):
        assert model(batch_of(toy.make_batch(samples, canvas=96)))["loss"].isfinite()


def test_encoders_with_different_normalization(toy_paths: dict[str, str], model: MGLLaVA) -> None:
    images = torch.randint(0, 256, (1, 3, toy.CANVAS, toy.CANVAS), dtype=torch.uint8)
    high = model.visual_encoder_aux
    own = high.spec
    high.spec = replace(own, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    try:
        view, low = high.view(images), model.visual_encoder.view(images)
        other_low = resample(view, 28)
    finally:
        high.spec = own
    torch.testing.assert_close(view, images.float() / 127.5 - 1, rtol=1e-5, atol=1e-5)
    assert torch.equal(low, resample(high.view(images), 28)) and not torch.allclose(low, other_low)


def test_timm_backbone_and_other_boxes(toy_paths: dict[str, str]) -> None:
    high = {"type": "mg_llava.TimmEncoder", "name": "resnet18", "image_size": 64, "dtype": "float32"}
    box_projector = {"type": "mg_llava.RoIAlignBoxProjector", "stages": [3, 4], "bins": 7, "depth": 1}
    model = toy.build_model(toy_paths, high_res_encoder=high, box_projector=box_projector).train()
    assert model.bbox_projector.in_channels == 256 + 512
    for samples in (MIXED, [(6, 0)]):
        assert model(batch_of(toy.make_batch(samples)))["loss"].isfinite()


def test_llm_with_narrower_word_embeddings(toy_paths: dict[str, str], tmp_path: Path) -> None:
    """OPT projects its word embeddings: tokens have their width, not that of the hidden states."""
    from transformers import OPTConfig, OPTForCausalLM

    OPTForCausalLM(
        OPTConfig(
            vocab_size=300,
            hidden_size=32,
            word_embed_proj_dim=16,
            ffn_dim=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=128,
        )
    ).save_pretrained(tmp_path)
    llm = toy.model_config(toy_paths)["llm"] | {"path": str(tmp_path)}
    model = toy.build_model(toy_paths, llm=llm)
    assert model.projector.model[2].out_features == 16


# -- errors ---------------------------------------------------------------------------------------------------------


def refuse_to_load(*_: object, **__: object) -> nn.Module:
    raise AssertionError("no weights must be read")


def test_parts_without_the_encoder_that_they_read(toy_paths: dict[str, str]) -> None:
    config = toy.model_config(toy_paths, high_res_encoder=None, llm={"type": refuse_to_load})
    config.pop("type")
    with pytest.raises(ValueError, match="high_res_encoder is None, but fusion and box_projector would read it"):
        MGLLaVA(**config)


def test_every_impossible_combination_in_one_message(toy_paths: dict[str, str], tmp_path: Path) -> None:
    clip = toy.write_clip(tmp_path / "clip", image_size=70)
    config = toy.model_config(
        toy_paths | {"clip": str(clip)},
        llm={"type": refuse_to_load},
        fusion={"type": "mg_llava.ConvGateFusion", "low_channels": 99},
        box_projector={"type": "mg_llava.RoIAlignBoxProjector", "stage_channels": [1, 2]},
    )
    config.pop("type")
    with pytest.raises(ValueError) as error:
        MGLLaVA(**config)
    message = str(error.value)
    assert message.startswith("these parts do not go together: ")
    for problem in (
        "low_channels=99, but the other parts give 16",
        "stage_channels=[1, 2], but the other parts give [8, 12, 16, 24]",
        "the low-resolution view (70 px) is larger than the canvas (64 px)",
        "5 x 5 grid (70 px)",
        "use image_size=160",
        "unequal_grids='interpolate'",
    ):
        assert problem in message, problem


def test_sizes_that_agree_may_be_stated(toy_paths: dict[str, str]) -> None:
    fusion = {"type": "mg_llava.ConvGateFusion", "low_channels": toy.CLIP_WIDTH}
    boxes = {"type": "mg_llava.RoIAlignBoxProjector", "stage_channels": list(toy.STAGE_CHANNELS)}
    stated, derived = toy.build_model(toy_paths, fusion=fusion, box_projector=boxes), toy.build_model(toy_paths)
    assert {name: p.shape for name, p in stated.named_parameters()} == {
        name: p.shape for name, p in derived.named_parameters()
    }


@pytest.fixture()
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside, weights of neither the LLM nor the encoders can be read."""
    monkeypatch.setattr("mg_llava.models.llm.load_hugging_face", refuse_to_load)
    monkeypatch.setattr("mg_llava.models.encoders.base.load_mapped", refuse_to_load)


CONCAT = {"type": "mg_llava.ChannelConcatFusion"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fusion": CONCAT, "projector": {"type": "mg_llava.MLPProjector", "in_channels": 16}},
            "projector has in_channels=16, but the other parts give 40; leave it out",
        ),
        (
            {"merger": {"type": "mg_llava.BoxesIntoPicture", "object_channels": 24}},
            "merger has object_channels=24, but the other parts give 60",
        ),
        (
            {"merger": {"type": "mg_llava.PictureIntoBoxes", "visual_channels": 8}},
            "merger has visual_channels=8, but the other parts give 16",
        ),
        (
            {"box_projector": {"type": "mg_llava.RoIAlignBoxProjector", "out_channels": 7}},
            "box_projector has out_channels=7, but the other parts give 32",
        ),
        (
            {"box_projector": {"type": "mg_llava.StageSumBoxProjector", "low_channels": 8}},
            "box_projector has low_channels=8, but the other parts give 16",
        ),
        (
            {"fusion": parts.ConvGateFusion(8, 12)},
            "fusion has low_channels=8, but the other parts give 16; give its config instead",
        ),
        (
            {"fusion": parts.PatchInfoMiningFusion(16, 24)},
            "fusion has high_channels=24, but the other parts give 60",
        ),
        (
            {"box_projector": parts.RoIAlignBoxProjector((8, 12), 32)},
            r"box_projector has stage_channels=\[8, 12\], but the other parts give \[8, 12, 16, 24\]",
        ),
        ({"projector": parts.MLPProjector(16, 7)}, "projector has out_channels=7, but the other parts give 32"),
        ({"projector": None}, "projector is None; give one, such as"),
    ],
)
@pytest.mark.usefixtures("unread")
def test_other_sizes_than_those_that_follow(toy_paths: dict[str, str], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"these parts do not go together: {message}"):
        MODELS.build(toy.model_config(toy_paths, **changes))


@pytest.mark.usefixtures("unread")
def test_impossible_sizes_and_settings_are_one_message(toy_paths: dict[str, str]) -> None:
    config = toy.model_config(
        toy_paths,
        fusion={**CONCAT, "low_channels": 8, "unequal_grids": "crop"},
        box_projector={"type": "mg_llava.RoIAlignBoxProjector", "out_channels": 7, "stages": [4]},
        merger={"type": "mg_llava.PictureIntoBoxes", "source": "high"},
        projector={"type": "mg_llava.MLPProjector", "in_channel": 16, "depth": 0},
        frame_pooler={"type": "mg_llava.FramePooling", "side": 0},
    )
    with pytest.raises(ValueError) as error:
        MODELS.build(config)
    for problem in (
        "fusion has low_channels=8, but the other parts give 16",
        "fusion: unequal_grids must be 'error' or 'interpolate', found 'crop'",
        "box_projector has out_channels=7, but the other parts give 32",
        "box_projector: stages=[4] must be indices into the encoder's 4 stages",
        "merger: source must be 'low' or 'fused', found 'high'",
        "projector: MLPProjector has no argument in_channel; did you mean in_channels?",
        "projector: a projector needs depth >= 1, found 0",
        "frame_pooler: side is 0, must be at least 1",
    ):
        assert problem in str(error.value), problem


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        ("fusion", {"type": "mg_llava.ConvGateFusion", "gate_per": "pixel"}, "gate_per must be one of picture"),
        ("fusion", {"type": "mg_llava.ConvGateFusion", "gate_start": 1.5}, "gate_start must be between"),
        ("box_projector", {"type": "mg_llava.RoIAlignBoxProjector", "bins": 0}, "bins is 0, must be at least 1"),
        ("box_projector", {"type": "mg_llava.RoIAlignBoxProjector", "token_norm": -1}, "token_norm must be positive"),
        ("box_projector", {"type": "mg_llava.RoIAlignBoxProjector", "depth": 0}, "a projector needs depth >= 1"),
    ],
)
@pytest.mark.usefixtures("unread")
def test_impossible_settings_are_found_before_weights_are_read(
    toy_paths: dict[str, str], part: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"these parts do not go together: {part}: {message}"):
        MODELS.build(toy.model_config(toy_paths, **{part: settings}))


def test_trying_a_part_draws_no_number() -> None:
    before = torch.get_rng_state()
    made, faults = try_part("it", {"type": "mg_llava.ResamplerProjector"}, in_channels=4, out_channels=8, grid=2)
    assert made.query.is_meta and not faults and torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("unread")
def test_a_function_is_no_fusion(toy_paths: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"fusion is a refuse_to_load; derive it from .*interfaces\.Fusion"):
        MODELS.build(toy.model_config(toy_paths, fusion={"type": refuse_to_load}))


def test_a_class_token_is_kept_where_no_part_needs_a_grid(
    toy_paths: dict[str, str], request: pytest.FixtureRequest
) -> None:
    low = {"type": "mg_llava.TimmTokenEncoder", "name": "test_vit.r160_in1k", "image_size": 32, "dtype": "float32"}
    model = toy.build_model(toy_paths, low_res_encoder=low, fusion=None)
    tokens = model.visual_encoder.spec.tokens
    assert model.tokens_of(1, 2) == tokens + 2 and model(batch_of(toy.make_batch([(9, 1)])))["loss"].isfinite()
    request.getfixturevalue("unread")
    resampler = {"type": "mg_llava.ResamplerProjector", "heads": 0}
    with pytest.raises(ValueError) as error:
        MODELS.build(toy.model_config(toy_paths, low_res_encoder=low, projector=resampler))
    for part in ("fusion", "projector"):
        assert f"{part}: {tokens} low-resolution tokens do not form a square grid" in str(error.value)
    assert "projector: heads is 0" in str(error.value)


@pytest.mark.parametrize("stages", [[0], [1, -2], None])
@pytest.mark.usefixtures("unread")
def test_an_encoder_whose_last_stage_nothing_reads_is_not_trained(
    toy_paths: dict[str, str], stages: list[int] | None
) -> None:
    boxes = None if stages is None else {"type": "mg_llava.RoIAlignBoxProjector", "stages": stages}
    changes = {"fusion": None, "box_projector": boxes, "trains": ["projector", "high_res_encoder"]}
    with pytest.raises(ValueError, match="high_res_encoder is in trains, but nothing reads its last stage"):
        MODELS.build(toy.model_config(toy_paths, **changes))


@pytest.mark.parametrize("stages", [[0, -1], None])
def test_an_encoder_that_is_read_is_trained(toy_paths: dict[str, str], stages: list[int] | None) -> None:
    boxes = {"type": "mg_llava.RoIAlignBoxProjector", "stages": stages}
    changes = {"llm": None, "fusion": None, "box_projector": boxes, "trains": ["high_res_encoder"]}
    assert MODELS.build(toy.model_config(toy_paths, **changes)).visual_encoder_aux.is_trained


def test_missing_llm_folder(toy_paths: dict[str, str], tmp_path: Path) -> None:
    config = toy.model_config(toy_paths | {"llm": str(tmp_path / "vicuna")})
    with pytest.raises(FileNotFoundError, match=r"vicuna does not exist; expected .* causal LM .*Check the path"):
        MODELS.build(config)


def test_unknown_mode(model: MGLLaVA) -> None:
    with pytest.raises(ValueError, match="'loss', 'predict' or 'tensor', found 'train'"):
        model(batch_of(toy.make_batch([(6, 0)])), mode="train")


def test_placeholder_without_a_picture(model: MGLLaVA) -> None:
    data = batch_of(toy.make_batch([(6, 0), (9, 1)]))
    data["input_ids"][0, 2] = IMAGE_TOKEN_INDEX
    with pytest.raises(ValueError, match="2 placeholders in input_ids but 1 pictures in the batch"):
        model(data)
    data = batch_of(toy.make_batch([(6, 0)]))
    data["input_ids"][0, 2] = VIDEO_TOKEN_INDEX
    with pytest.raises(ValueError, match="1 placeholders in input_ids but 0 pictures in the batch"):
        model(data)


def test_pictures_without_boxes_key(model: MGLLaVA) -> None:
    data = batch_of(toy.make_batch([(9, 1)]))
    del data["boxes"]
    with pytest.raises(ValueError, match="1 pictures but 0 lists of boxes"):
        model(data)
