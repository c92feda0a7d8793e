"""Refined objects: the detector's own at step 0, taught by transformers' criterion; both losses reach the queries."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mg_llava.models.encoders.detector import TransformerDetector
from mg_llava.models.interfaces import Detected
from mg_llava.models.losses.boxes import RefinementLoss, before_answers
from mg_llava.models.losses.language import last_hidden
from mg_llava.registry import MODELS
from tests.contract import cases
from tests.detection import toys
from tests.models.systems.test_mr_mllm import SAMPLES, batch_of

OBJECTS = [
    {"boxes": torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 10.0, 60.0, 44.0]]), "labels": ["LABEL_0", "LABEL_2"]},
    None,
    {"boxes": torch.zeros(0, 4), "labels": []},
]
"""Annotated objects of the three canvases of SAMPLES."""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return cases.write_all(tmp_path_factory.mktemp("refinement"))


def build(paths: dict[str, str], **changes: Any) -> Any:
    torch.manual_seed(3)
    config = {**cases.SYSTEMS["MRMLLM"](paths), **changes}
    return MODELS.build({**config, "llm": {**config["llm"], "tuning": "frozen"}})


def stir(system: Any) -> Any:
    """Gates and readers as after some training."""
    torch.manual_seed(5)
    for name, parameter in system.named_parameters():
        if name.endswith("gate") or name.startswith(("shared_queries.out", "refine.out")):
            nn.init.normal_(parameter, std=0.3)
    return system


def refined(system: Any, batch: dict[str, Any]) -> Detected:
    with torch.no_grad():
        seeing = system.see(batch)
        read = system.read(batch, seeing)
        mask = before_answers(read.layout)
        with system.condition([[seeing[0]], [], seeing[1:]]):
            states = last_hidden(system.llm, read)
        return system.refine_objects(seeing, states, mask, read.layout.placeholders)


@pytest.mark.parametrize("kind", ["detr", "deformable_detr", "rt_detr", "grounding-dino"])
def test_step_0_is_the_detector(paths: dict[str, str], tmp_path: Path, kind: str) -> None:
    detector: dict[str, Any] = {"type": TransformerDetector, "objects": 4, "dtype": "float32"}
    if kind == "grounding-dino":
        detector |= {"path": toys.write_grounding_dino(tmp_path / kind), "classes": ["dog", "cat"], "image_size": 96}
    else:
        detector |= {"path": str(toys.write_detr(tmp_path / kind, kind))}
    system = build(paths, detector=detector).eval()
    batch = batch_of(SAMPLES, system.canvas_size)
    raw, found = system.detector(batch["canvas"]).detected, refined(system, batch)
    for name, wanted, own in zip(Detected._fields, raw, found, strict=True):
        assert torch.equal(own, wanted), name
    changed = refined(stir(system), batch)
    assert not torch.allclose(changed.boxes, raw.boxes, atol=1e-3)
    assert (changed.boxes >= 0).all() and (changed.boxes <= 1).all()
    assert not torch.allclose(changed.scores, raw.scores, atol=1e-3)


def test_rows_alone_as_in_a_batch(paths: dict[str, str]) -> None:
    """Padding, answers and other rows are not read."""
    system = stir(build(paths)).eval()
    batch = batch_of(SAMPLES, system.canvas_size)
    together = refined(system, batch)
    alone = refined(system, {**batch_of([(9, 1), (6, 0), (7, 2)], system.canvas_size), "labels": batch["labels"]})
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))
    with torch.no_grad():
        one = batch_of(SAMPLES[:1], system.canvas_size)
        seeing = system.see(one)
        read = system.read(one, seeing)
        mask = before_answers(read.layout)
        assert 0 < mask.sum() < read.layout.attention_mask.sum()
        cut = int(mask.sum())
        with system.condition([seeing]):
            states = last_hidden(system.llm, read)
        single = system.refine_objects(seeing, states[:, :cut], mask[:, :cut], (1,))
    assert torch.allclose(single.boxes, together.boxes[:1], atol=1e-5)
    assert torch.allclose(single.logits, together.logits[:1], atol=1e-4)


@pytest.mark.parametrize("kind", ["detr", "conditional_detr", "deformable_detr"])
def test_criterion_is_that_of_transformers(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForObjectDetection

    folder = toys.write_detr(tmp_path / kind, kind)
    model = AutoModelForObjectDetection.from_pretrained(folder).eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    boxes = [torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.3, 0.6, 0.1, 0.1]]), torch.tensor([[0.2, 0.2, 0.3, 0.3]])]
    targets = [
        {"class_labels": torch.tensor(own), "boxes": box} for own, box in zip([[0, 2], [1]], boxes, strict=True)
    ]
    with torch.no_grad():
        wanted = model(pixel_values=pixels, labels=targets)
        found = Detected(wanted.last_hidden_state, wanted.pred_boxes, wanted.logits[..., 0], wanted.logits)
        order = torch.tensor([3, 0, 5, 1, 4, 2])  # the matching does not depend on the order
        shuffled = Detected(*(values[:, order] for values in found))
        cost = float(model.config.class_cost)
        loss = RefinementLoss(class_cost=cost).criterion(shuffled, targets, 3)
    assert torch.allclose(loss, wanted.loss, atol=1e-5)


@pytest.mark.parametrize("reads_language", [True, False])
def test_gradients_of_both_losses_and_learning(paths: dict[str, str], reads_language: bool) -> None:
    head = {**cases.SYSTEMS["MRMLLM"](paths)["refine"], "reads_language": reads_language}
    system = stir(build(paths, refine=head)).train()
    batch = {**batch_of(SAMPLES, system.canvas_size), "extra": {"objects": OBJECTS}}
    assert system.loss_counts(batch)[1] == 2
    values = system(batch)
    assert set(values) == {"loss", "loss_refine"}
    for name in values:
        system.zero_grad()
        values[name].backward(retain_graph=True)
        shared = system.shared_queries.query.grad
        assert shared is not None and shared.abs().max() > 0, name
        gates = [parameter.grad for key, parameter in system.adapter.named_parameters() if key.endswith("gate")]
        reaches = any(grad is not None and grad.abs().max() > 0 for grad in gates)
        assert reaches == (name == "loss" or reads_language)
    optimizer = torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=3e-3)
    losses: list[Tensor] = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = system(batch)["loss_refine"]
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert losses[-1] < 0.9 * losses[0]


def test_pictures_that_nobody_annotated_teach_nothing(paths: dict[str, str]) -> None:
    system = build(paths).train()
    for samples in (SAMPLES, [(6, 0)]):
        batch = batch_of(samples, system.canvas_size)
        for extra in ({}, {"extra": {"objects": [None] * 3}}) if samples is SAMPLES else ({},):
            assert float(system({**batch, **extra})["loss_refine"]) == 0
    wrong = [{"boxes": torch.zeros(1, 4), "labels": ["umbrella"]}, None, None]
    with pytest.raises(
        ValueError, match="annotated as umbrella, which the detector does not know; its classes are LABEL_0"
    ):
        system({**batch_of(SAMPLES, system.canvas_size), "extra": {"objects": wrong}})


def test_a_head_needs_a_detector(paths: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="refine changes what a detector finds"):
        build(paths, detector=None, objects=None)
    bare = build(paths, refine=None)
    assert [type(loss).__name__ for loss in bare.losses] == ["LanguageLoss"]
