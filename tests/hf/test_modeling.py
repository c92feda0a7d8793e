"""The Hugging Face model: equal to ours, and with the habits of transformers' models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
)

from mg_llava.compat import auto_models
from mg_llava.data.collate import collate
from mg_llava.hf import MGLLaVAConfig, MGLLaVAForConditionalGeneration, MGLLaVAProcessor, own_key
from mg_llava.inference import Predictor, Request
from tests import toy
from tests.hf.conftest import BOXES, PROCESSOR, Exported, make_picture, own_state, write_folder, write_weights

QUESTIONS = [
    ("what is there?", [make_picture()], [BOXES]),
    ("a digit", [], []),
    ("two digits and a longer question?", [make_picture(1), make_picture(2, (40, 70))], [BOXES[:1], []]),
    ("and now?", [make_picture(3)], [[]]),
]


@pytest.fixture(scope="module")
def model(exported: Exported) -> MGLLaVAForConditionalGeneration:
    return MGLLaVAForConditionalGeneration.from_pretrained(exported.folder)


@pytest.fixture(scope="module")
def processor(exported: Exported) -> MGLLaVAProcessor:
    return MGLLaVAProcessor.from_pretrained(exported.folder)


@pytest.fixture(scope="module")
def inputs(processor: MGLLaVAProcessor) -> dict[str, Any]:
    return make_inputs(processor, QUESTIONS)


def make_inputs(processor: MGLLaVAProcessor, questions: list, **kwargs: Any) -> dict[str, Any]:
    return processor(
        conversation=[[{"role": "user", "content": question}] for question, _, _ in questions],
        images=[pictures for _, pictures, _ in questions],
        boxes=[boxes if len(pictures) > 1 else boxes[0] if pictures else None for _, pictures, boxes in questions],
        **kwargs,
    )


def as_hf(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of training under the names that transformers knows."""
    names = {"canvas": "pixel_values", "ids": None}
    return {names.get(key, key): value for key, value in batch.items() if names.get(key, key) is not None}


def test_logits_and_loss_are_ours(exported: Exported, model: Any) -> None:
    batch = collate(toy.make_batch([(9, 1), (14, 2), (6, 0), (11, 1)], seed=3))["data"]
    with torch.no_grad():
        wanted = exported.model(batch, mode="tensor")
        output = model(**as_hf(batch))
        loss = exported.model(batch, mode="loss")["loss"]
    assert torch.equal(output.logits, wanted["logits"])
    torch.testing.assert_close(output.loss, loss, rtol=1e-6, atol=0)
    assert output.past_key_values is not None
    logits, *_ = model(**{**as_hf(batch), "labels": None}, return_dict=False)
    assert torch.equal(logits, wanted["logits"])


def test_loss_over_accumulated_batches(model: Any) -> None:
    whole = collate(toy.make_batch([(9, 1), (14, 2)], seed=5))["data"]
    parts = [collate([row])["data"] for row in toy.make_batch([(9, 1), (14, 2)], seed=5)]
    items = int((whole["labels"][:, 1:] >= 0).sum())
    with torch.no_grad():
        total = sum(model(**as_hf(part), num_items_in_batch=items).loss for part in parts)
        torch.testing.assert_close(total, model(**as_hf(whole)).loss)


def test_answers_are_the_predictors(exported: Exported, model: Any, processor: Any, inputs: Any) -> None:
    predictor = Predictor(exported.model, exported.paths["llm"], "vicuna", PROCESSOR, max_new_tokens=8)
    requests = [
        Request(question, pictures, boxes if len(pictures) > 1 else boxes[0] if boxes else None)
        for question, pictures, boxes in QUESTIONS
    ]
    wanted = predictor.predict_many(requests, batch_size=len(requests))
    output = model.generate(**inputs, max_new_tokens=8)
    width = inputs["input_ids"].shape[1]
    assert torch.equal(output[:, :width], inputs["input_ids"])
    ends = {*model.generation_config.eos_token_id, model.generation_config.pad_token_id}
    for row, answer in zip(output[:, width:].tolist(), wanted, strict=True):
        assert tuple(row[: len(answer.token_ids)]) == answer.token_ids
        assert set(row[len(answer.token_ids) :]) <= ends
    assert processor.decode_answers(output, inputs["input_ids"]) == [answer.text for answer in wanted]
    assert len({answer.token_ids for answer in wanted}) > 1


def test_padded_batch_is_one_by_one(model: Any, processor: Any, inputs: Any) -> None:
    together = model.generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
    for row, question in zip(together, QUESTIONS, strict=True):
        alone = make_inputs(processor, [question])
        own = model.generate(**alone, max_new_tokens=8)[0, alone["input_ids"].shape[1] :]
        assert torch.equal(row[: len(own)], own)
    with torch.no_grad():
        last = model(**inputs).logits[:, -1]
        right = model(**make_inputs(processor, QUESTIONS, padding_side="right"))
        for number, question in enumerate(QUESTIONS):
            own = model(**make_inputs(processor, [question])).logits[0]
            torch.testing.assert_close(last[number], own[-1], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(right.logits[number, : len(own)], own, rtol=1e-4, atol=1e-4)


def test_cache_changes_nothing(model: Any, inputs: Any) -> None:
    with_cache = model.generate(**inputs, max_new_tokens=6)
    assert torch.equal(with_cache, model.generate(**inputs, max_new_tokens=6, use_cache=False))
    ids = {"inputs": inputs["input_ids"]}
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    assert torch.equal(with_cache, model.generate(**ids, **rest, max_new_tokens=6))


@pytest.mark.parametrize("beams", [1, 2])
def test_generated_ids_are_scored_and_decoded(model: Any, processor: Any, inputs: Any, beams: int) -> None:
    given = {"num_beams": beams, "return_dict_in_generate": True, "output_scores": True}
    output = model.generate(**inputs, max_new_tokens=4, eos_token_id=299, **given)
    indices = output.beam_indices if beams > 1 else None
    scores = model.compute_transition_scores(output.sequences, output.scores, indices, normalize_logits=beams == 1)
    assert scores.shape == (len(inputs["input_ids"]), 4) and bool((scores < 0).all())
    if beams > 1:
        torch.testing.assert_close(scores.sum(dim=1) / 4, output.sequences_scores)
    texts = processor.batch_decode(output, skip_special_tokens=True)
    assert texts == processor.batch_decode(output.sequences, skip_special_tokens=True)
    assert processor.decode_answers(output, inputs["input_ids"]) == [
        text.partition("ASSISTANT:")[2].strip() for text in texts
    ]


def test_ways_to_generate(model: Any, processor: Any) -> None:
    inputs = make_inputs(processor, QUESTIONS[:2])
    width = inputs["input_ids"].shape[1]
    output = model.generate(
        **inputs,
        max_new_tokens=4,
        min_new_tokens=4,
        num_beams=3,
        num_return_sequences=2,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert output.sequences.shape == (4, width + 4)
    assert torch.equal(output.sequences[::2, :width], inputs["input_ids"])
    torch.manual_seed(0)
    sampled = model.generate(**inputs, max_new_tokens=4, do_sample=True, temperature=5.0, num_return_sequences=3)
    assert len({tuple(row.tolist()) for row in sampled}) > 2


@pytest.mark.parametrize(
    "changes",
    [
        {"high_res_encoder": None, "fusion": None, "box_projector": None},
        {"fusion": None},
        {"box_projector": None},
        {"box_projector": {"type": "mg_llava.RoIAlignBoxProjector", "bins": 7, "stages": [3], "depth": 1}},
        {
            "high_res_encoder": {
                "type": "mg_llava.TimmEncoder",
                "name": "test_convnext",
                "image_size": toy.CANVAS,
                "dtype": "float32",
            }
        },
    ],
)
def test_variants(changes: dict, toy_paths: dict[str, str], tmp_path: Path) -> None:
    ours = write_folder(tmp_path, toy_paths, **changes)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    inputs = make_inputs(AutoProcessor.from_pretrained(tmp_path), QUESTIONS[:2])
    batch = {**{k: v for k, v in inputs.items() if k != "pixel_values"}, "canvas": inputs["pixel_values"]}
    batch["attention_mask"] = batch["attention_mask"].bool()
    wanted = ours.generate(batch, max_new_tokens=6)
    output = model.generate(**inputs, max_new_tokens=6)[:, inputs["input_ids"].shape[1] :]
    assert [row[: len(own)].tolist() for row, own in zip(output, wanted, strict=True)] == [w.tolist() for w in wanted]


# -- saving and loading -----------------------------------------------------------------------------------------------


def test_round_trip(exported: Exported, model: Any, inputs: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "once", max_shard_size="20KB")
    assert len(list((tmp_path / "once").glob("*.safetensors"))) > 1
    again = MGLLaVAForConditionalGeneration.from_pretrained(tmp_path / "once")
    again.save_pretrained(tmp_path / "twice")
    stored = load_file(tmp_path / "twice" / "model.safetensors")
    ours = own_state(exported.model)
    assert {own_key(name) for name in stored} == set(ours)
    for name, tensor in stored.items():
        assert torch.equal(tensor, ours[own_key(name)]) and tensor.dtype == ours[own_key(name)].dtype, name
    configs = [json.loads((folder / "config.json").read_text()) for folder in (exported.folder, tmp_path / "twice")]
    assert configs[0] == configs[1]
    assert again.generation_config.to_dict() == model.generation_config.to_dict()
    assert torch.equal(again.generate(**inputs, max_new_tokens=6), model.generate(**inputs, max_new_tokens=6))
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_auto_classes(exported: Exported) -> None:
    assert isinstance(AutoConfig.from_pretrained(exported.folder), MGLLaVAConfig)
    for auto in auto_models():
        assert isinstance(auto.from_pretrained(exported.folder), MGLLaVAForConditionalGeneration)
    made = AutoModel.from_config(AutoConfig.from_pretrained(exported.folder))
    assert not made.model.fuse_module.slow_proj.weight.any()  # made anew, the fusion is the identity
    assert made.model.llm.lm_head.weight.std() > 0.1


@pytest.mark.parametrize("how", [{"device_map": "cpu"}, {"device_map": "auto"}, {"low_cpu_mem_usage": True}])
def test_placing(how: dict, exported: Exported, model: Any, inputs: Any) -> None:
    placed = AutoModelForImageTextToText.from_pretrained(exported.folder, **how)
    assert not any(parameter.is_meta for parameter in placed.parameters())
    with torch.no_grad():
        assert torch.equal(placed(**inputs).logits, model(**inputs).logits)


def test_offloading(exported: Exported, model: Any, inputs: Any, tmp_path: Path) -> None:
    device_map = {
        name: "cpu" for name in ("model.llm", "model.visual_encoder", "model.projector", "model.fuse_module")
    }
    device_map |= {
        "model.visual_encoder_aux": "disk",
        "model.bbox_projector": "disk",
        "model.data_preprocessor": "cpu",
    }
    placed = AutoModelForImageTextToText.from_pretrained(
        exported.folder, device_map=device_map, offload_folder=str(tmp_path), torch_dtype=torch.float32
    )
    with torch.no_grad():
        torch.testing.assert_close(placed(**inputs).logits, model(**inputs).logits)


def test_no_part_is_split(exported: Exported, model: Any) -> None:
    from accelerate import infer_auto_device_map

    ask = getattr(model, "_get_no_split_modules", None)  # before transformers 5
    names = sorted(model._no_split_modules if ask is None else ask("auto"))
    assert "LlamaDecoderLayer" in names
    placed = infer_auto_device_map(model, max_memory={"cpu": 250_000, "disk": "1GB"}, no_split_module_classes=names)
    assert set(placed.values()) == {"cpu", "disk"}
    vision = [name for name in placed if "llm" not in name and name.count(".") > 1]
    assert not vision, "parts beside the LLM lie on one device each"


def test_dtype(exported: Exported, inputs: Any, tmp_path: Path) -> None:
    half = AutoModelForImageTextToText.from_pretrained(exported.folder, torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    output = half.generate(**inputs, max_new_tokens=4)
    assert output.shape[1] <= inputs["input_ids"].shape[1] + 4
    half.save_pretrained(tmp_path)
    auto = AutoModelForImageTextToText.from_pretrained(tmp_path, torch_dtype="auto")
    assert {parameter.dtype for parameter in auto.parameters()} == {torch.bfloat16}
    assert torch.equal(auto.generate(**inputs, max_new_tokens=4), output)
    assert AutoModelForImageTextToText.from_pretrained(exported.folder, torch_dtype="auto").dtype == torch.float32


def test_tied_embeddings(toy_paths: dict[str, str], tmp_path: Path) -> None:
    llm = shutil.copytree(toy_paths["llm"], tmp_path / "llm")
    settings = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    weights = load_file(llm / "model.safetensors")
    weights.pop("lm_head.weight")
    save_file(weights, llm / "model.safetensors", metadata={"format": "pt"})
    ours = write_folder(tmp_path / "hf", {**toy_paths, "llm": str(llm)})
    assert "model.llm.lm_head.weight" not in load_file(tmp_path / "hf" / "model.safetensors")
    for how in ({}, {"device_map": "cpu"}):
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / "hf", **how)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert torch.equal(model.get_input_embeddings().weight, ours.llm.lm_head.weight)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "again")
    assert torch.equal(again.get_output_embeddings().weight, ours.llm.lm_head.weight)


def test_attention_backend(exported: Exported, model: Any, inputs: Any) -> None:
    assert model.model.llm.config._attn_implementation == "sdpa"
    eager = AutoModelForImageTextToText.from_pretrained(exported.folder, attn_implementation="eager")
    assert eager.model.llm.config._attn_implementation == "eager"
    pictures = inputs["pixel_values"], inputs["boxes"], None, None
    is_text = model._merge(inputs["input_ids"], pictures, inputs["attention_mask"]).attention_mask.bool()
    with torch.no_grad():
        found, wanted = eager(**inputs).logits[is_text], model(**inputs).logits[is_text]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("part", ["fuse_module", "bbox_projector", "visual_encoder_aux", "llm"])
def test_missing_weights_are_refused(part: str, exported: Exported, tmp_path: Path) -> None:
    folder = shutil.copytree(exported.folder, tmp_path / "folder")
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if name.startswith(f"model.{part}."))
    renamed = {name + "_old" if name == gone else name: tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights") as error:
        AutoModelForImageTextToText.from_pretrained(folder)
    assert gone in str(error.value)


def test_misshapen_weights_are_refused(exported: Exported, tmp_path: Path) -> None:
    folder = shutil.copytree(exported.folder, tmp_path / "folder")
    weights = load_file(folder / "model.safetensors")
    weights["model.projector.model.0.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"projector\.model\.0\.weight"):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_state_dict_is_strict(model: Any) -> None:
    state = model.state_dict()
    model.load_state_dict(state)
    state.pop("model.fuse_module.slow_conv.weight")
    with pytest.raises(RuntimeError, match="slow_conv"):
        model.load_state_dict(state)


# -- training and quantization --------------------------------------------------------------------------------------


def test_gradient_checkpointing(exported: Exported) -> None:
    batch = as_hf(collate(toy.make_batch([(9, 1), (14, 2), (6, 0)], seed=3))["data"])
    gradients = []
    for switch in (False, True):
        model = AutoModelForImageTextToText.from_pretrained(exported.folder).train()
        if switch:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert model.is_gradient_checkpointing and model.model.llm.model.gradient_checkpointing
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert {name.split(".")[1] for name in gradients[0]} == {"llm", "projector", "bbox_projector", "fuse_module"}
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_quantization_needs_a_gpu(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if "cpu" in getattr(pytest.importorskip("bitsandbytes"), "supported_torch_devices", ()):  # newer releases
        whole = AutoModelForImageTextToText.from_pretrained(exported.folder, load_in_4bit=True)
        quantized = [name for name, module in whole.named_modules() if type(module).__name__ == "Linear4bit"]
        assert quantized and all(name.startswith("model.llm.model.layers.") for name in quantized)
        return
    for how in ({"load_in_4bit": True}, {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}):
        with pytest.raises((RuntimeError, ImportError), match=r"GPU|bitsandbytes"):
            AutoModelForImageTextToText.from_pretrained(exported.folder, **how)


def test_only_the_llm_is_quantized(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers would quantize with the settings that ``from_pretrained`` hands it."""
    from transformers import PreTrainedModel
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    seen: dict[str, Any] = {}

    def remember(cls: Any, *args: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        raise InterruptedError

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(remember))
    own = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["mine"])
    for how, skipped in [
        ({"quantization_config": own}, ["mine"]),
        ({"quantization_config": {"load_in_4bit": True}}, None),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, None),
    ]:
        with pytest.raises(InterruptedError):
            MGLLaVAForConditionalGeneration.from_pretrained("folder", **how)
        settings = seen["quantization_config"]
        assert skipped is None or settings.llm_int8_skip_modules == skipped
    monkeypatch.undo()
    assert settings.load_in_4bit and settings.bnb_4bit_quant_type == "nf4" and "load_in_4bit" not in seen
    model = MGLLaVAForConditionalGeneration(AutoConfig.from_pretrained(exported.folder))
    model = replace_with_bnb_linear(model, settings.llm_int8_skip_modules, quantization_config=settings)
    quantized = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert quantized and all(name.startswith("model.llm.model.layers.") for name in quantized)
    assert len(quantized) == 2 * 7


# -- errors -----------------------------------------------------------------------------------------------------------


def test_counts_must_match(model: Any, processor: Any) -> None:
    inputs = dict(make_inputs(processor, QUESTIONS[:1]))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"boxes": None}, "1 pictures but no boxes"),
        ({"boxes": []}, "1 pictures but 0 sets of boxes"),
        ({"boxes": inputs["boxes"] * 2}, "1 pictures but 2 sets of boxes"),
        ({"pixel_values": None, "boxes": None}, "1 placeholders in input_ids but 0 pictures"),
        ({"pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1), "boxes": inputs["boxes"] * 2}, "2 pictures in"),
        ({"input_ids": inputs["input_ids"].masked_fill(inputs["input_ids"] == 1, -7)}, "-7"),
    ]
    for change, message in wrong:
        for call in (model, model.generate):
            with pytest.raises(ValueError, match=message):
                call(**{**inputs, **change})
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(pixel_values=inputs["pixel_values"])
    cache = model(**inputs).past_key_values
    with pytest.raises(ValueError, match="cannot be added to a cache"):
        model(**inputs, past_key_values=cache)
    with pytest.raises(ValueError, match="filled cache"):
        model.generate(**inputs, past_key_values=cache)


def test_unknown_parts(exported: Exported, tmp_path: Path) -> None:
    config = json.loads((exported.folder / "config.json").read_text())
    for change, message in [
        ({"parts": config["parts"] | {"high_res_encoder": {"type": "Unknown"}}}, "Unknown"),
        ({"parts": config["parts"] | {"fusion": {"type": "NoFusion"}}}, "NoFusion"),
        ({"system": "NoSystem"}, "NoSystem"),
        ({"system": "ConvGateFusion"}, "ConvGateFusion"),
    ]:
        with pytest.raises(ValueError, match=message):
            MGLLaVAForConditionalGeneration(MGLLaVAConfig(**{**config, **change}))
    with pytest.raises(ValueError, match="no model type 'llama9'"):
        MGLLaVAConfig(text_config={"model_type": "llama9"})


def test_weights_of_a_training_checkpoint(exported: Exported, tmp_path: Path) -> None:
    """What is written beside the folder's files by the names of ``hf_key`` is what ``save_pretrained`` writes."""
    write_weights(exported.model, tmp_path)
    model = MGLLaVAForConditionalGeneration.from_pretrained(exported.folder)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())


def test_config_of_before_parts_were_one_table(exported: Exported) -> None:
    config = json.loads((exported.folder / "config.json").read_text())
    parts = config.pop("parts")
    low, high = parts["low_res_encoder"], parts["high_res_encoder"]
    before = {
        "vision_config": low["architecture"]["vision"],
        "low_resolution_config": {
            **{"layer": low["architecture"]["layer"]},
            **{"image_mean": low["mean"], "image_std": low["std"]},
        },
        "high_resolution_config": {
            **{"type": high["type"], "image_size": high["image_size"]},
            **{"timm_name": high["architecture"]["name"], "timm_kwargs": high["architecture"]["kwargs"]},
            **{"image_mean": high["mean"], "image_std": high["std"]},
        },
        **{f"{name}_config": parts[name] for name in ("fusion", "box_projector", "projector")},
    }
    read = MGLLaVAConfig(**config, **before)
    now = MGLLaVAConfig(**config, parts=parts)
    assert json.loads(read.to_json_string())["parts"] == json.loads(now.to_json_string())["parts"]
    assert not any(hasattr(read, name) for name in before)
    wanted = MGLLaVAForConditionalGeneration.from_pretrained(exported.folder).state_dict()
    assert {n: t.shape for n, t in MGLLaVAForConditionalGeneration(read).state_dict().items()} == {
        n: t.shape for n, t in wanted.items()
    }
