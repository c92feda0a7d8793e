"""MR-MLLM: the plain LLM at step 0, rows alone as in a batch, and the same answers from a Hugging Face folder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import Tensor, nn

from mg_llava.data.collate import collate
from mg_llava.models.weights.folders import map_folder
from mg_llava.registry import MODELS
from tests import toy
from tests.contract import cases
from tests.models.test_waiting import NoReads, step

SAMPLES = [(9, 1), (6, 0), (7, 2)]
"""Text ids and pictures of each row."""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return cases.write_all(tmp_path_factory.mktemp("mr_mllm"))


def build(paths: dict[str, str], is_open: bool = True, **changes: Any) -> Any:
    """The toy system; with open gates and a reader that is no longer zero."""
    torch.manual_seed(3)
    config = {**cases.SYSTEMS["MRMLLM"](paths), **changes}
    config["llm"] = {**config["llm"], "tuning": "frozen"}
    system = MODELS.build(config)
    if is_open:
        for name, parameter in system.named_parameters():
            if name.endswith("gate") or name.startswith("shared_queries.out"):
                nn.init.normal_(parameter)
    return system.eval()


def batch_of(samples: list[tuple[int, int]], size: int) -> dict[str, Any]:
    return collate(toy.make_batch(samples, canvas=size))["data"]


def logits(system: Any, batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return system(batch, mode="tensor")["logits"]


def test_closed_gates_are_the_plain_llm(paths: dict[str, str]) -> None:
    system = build(paths, is_open=False)
    batch = batch_of(SAMPLES, system.canvas_size)
    with torch.no_grad():
        inputs = system.merge(batch)
        text = system.llm.get_input_embeddings()(batch["input_ids"].clamp(min=0))
        plain = system.llm(
            inputs_embeds=inputs.inputs_embeds,
            attention_mask=inputs.attention_mask,
            position_ids=inputs.position_ids,
        )
    # placeholders take no place: the sequence is the text
    own = batch["input_ids"] >= 0
    assert torch.equal(inputs.inputs_embeds[inputs.attention_mask], text[own & batch["attention_mask"].bool()])
    assert torch.equal(logits(system, batch), plain.logits)


def test_rows_alone_as_in_a_batch(paths: dict[str, str]) -> None:
    system = build(paths)
    size = system.canvas_size
    samples = toy.make_batch(SAMPLES, canvas=size)
    together = logits(system, collate(samples)["data"])
    for row, sample in enumerate(samples):
        alone = logits(system, collate([sample])["data"])
        assert torch.allclose(alone[0], together[row, : alone.shape[1]], atol=1e-4)
    bare = logits(build(paths, is_open=False), collate(samples)["data"])
    assert not torch.allclose(bare[0], together[0], atol=1e-2)


def test_generation_of_a_batch_is_that_of_its_rows(paths: dict[str, str]) -> None:
    system = build(paths)
    samples = toy.make_batch(SAMPLES, canvas=system.canvas_size)
    settings = {"max_new_tokens": 6, "eos_token_id": []}
    together = system.generate(collate(samples)["data"], **settings)
    for row, sample in enumerate(samples):
        (alone,) = system.generate(collate([sample])["data"], **settings)
        assert torch.equal(alone, together[row])
    blind = build(paths, detector=None, objects=None, refine=None)
    assert len(blind.generate(collate(samples)["data"], **settings)) == 3  # without the object branch


@pytest.mark.parametrize("samples", [SAMPLES, [(9, 0), (6, 0)]])
def test_a_step_reads_no_value(paths: dict[str, str], samples: list[tuple[int, int]]) -> None:
    system = build(paths, refine=None).train()
    batch = batch_of(samples, system.canvas_size)
    with NoReads():
        step(system, batch)


def test_everything_but_llm_and_encoders_learns(paths: dict[str, str]) -> None:
    system = build(paths).train()
    before = {name: value.clone() for name, value in system.llm.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=1e-2)
    batch, losses = batch_of(SAMPLES, system.canvas_size), []
    for _ in range(8):
        optimizer.zero_grad()
        values = system(batch)
        (loss := values["loss"] + values["loss_refine"]).backward()
        losses.append(float(loss))
        for name, parameter in system.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
            if name.split(".")[0] in ("scene", "objects", "shared_queries"):
                assert parameter.grad.abs().sum() > 0 or "bias" in name, name
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[name]) for name, value in system.llm.state_dict().items())


def test_impossible_combinations_are_one_message(paths: dict[str, str]) -> None:
    config = cases.SYSTEMS["MRMLLM"](paths)
    with pytest.raises(ValueError, match=r"detector and objects belong together.*set packing=None"):
        MODELS.build({**config, "detector": None, "refine": None, "packing": 64})
    with pytest.raises(ValueError, match="detector is CLIPEncoder, which detects nothing; use TransformerDetector"):
        MODELS.build({**config, "detector": config["scene_encoder"]})
    with pytest.raises(ValueError, match="scene_encoder is TransformerDetector, which gives no tokens"):
        MODELS.build({**config, "scene_encoder": config["detector"]})


@pytest.mark.parametrize("beams", [1, 2])
def test_answers_from_a_hugging_face_folder(paths: dict[str, str], tmp_path: Path, beams: int) -> None:
    """Prompts stay for all steps of ``generate``, and are those of each row's own picture in all its beams."""
    import mg_llava.hf
    from mg_llava.conversion import convert

    system = build(paths)
    config = {
        "model": {**cases.SYSTEMS["MRMLLM"](paths)},
        "tokenizer": {
            "type": "transformers.AutoTokenizer.from_pretrained",
            "pretrained_model_name_or_path": paths["llm"],
            "padding_side": "right",
        },
        "prompt_template": "vicuna",
        "picture_processor": {"type": "mg_llava.PictureProcessor", "image_size": system.canvas_size},
    }
    config["model"]["llm"] = {**config["model"]["llm"], "tuning": "frozen"}
    meta = {"iter": 1, "epoch": 0, "seed": 0, "cfg": Config(config).pretty_text}
    torch.save({"meta": meta, "state_dict": system.state_dict(), "optimizer": {}}, tmp_path / "iter_1.pth")
    convert(tmp_path / "iter_1.pth", tmp_path / "hf", "hf")
    stored = set(map_folder(tmp_path / "hf"))
    assert {f"model.detector.network.{name}" for name in map_folder(Path(paths["detector"]))} <= stored
    loaded = mg_llava.hf.MGLLaVAForConditionalGeneration.from_pretrained(tmp_path / "hf", torch_dtype=torch.float32)
    batch = batch_of([(9, 1), (9, 1)], system.canvas_size)
    given = {"input_ids": batch["input_ids"], "pixel_values": batch["canvas"], "boxes": batch["boxes"]}
    with torch.no_grad():
        found = loaded(**given).logits
    torch.testing.assert_close(found, logits(system, batch))
    output = loaded.generate(**given, max_new_tokens=5, num_beams=beams, do_sample=False, eos_token_id=None)
    assert output.shape == (2, batch["input_ids"].shape[1] + 5)
    if beams == 1:
        wanted = system.generate(batch, max_new_tokens=5, eos_token_id=[])
        assert torch.equal(output[:, -5:], torch.stack(wanted))
