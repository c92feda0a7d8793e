"""Lyrics: from stage 1 to stage 2, and the same answers with a question by every door."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch import Tensor

from mg_llava.conversion import convert
from mg_llava.data.collate import collate
from mg_llava.data.records.turns import Turn
from mg_llava.data.text.pieces import question_of
from mg_llava.inference.predictor import Predictor
from mg_llava.inference.requests import Request
from mg_llava.models.interfaces import Segment
from mg_llava.models.queries.mq_former import padded_source
from mg_llava.models.systems.lyrics_pretrain import _join, _row
from mg_llava.models.vision import FeatureExtractor
from mg_llava.models.weights.checkpoint import load_training_checkpoint
from mg_llava.models.weights.parts import load_parts
from mg_llava.registry import MODELS
from tests import features, toy
from tests.contract import cases
from tests.models.test_waiting import NoReads, step

SAMPLES = [(9, 1), (6, 0), (12, 2)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return cases.write_all(tmp_path_factory.mktemp("lyrics"))


def build(paths: dict[str, str], name: str, **changes: Any) -> Any:
    """A toy system whose words and queries are large enough to matter."""
    torch.manual_seed(3)
    system = MODELS.build({**cases.SYSTEMS[name](paths), **changes})
    with torch.no_grad():
        for parameter in system.mq_former.parameters():
            if parameter.ndim > 1:
                parameter.mul_(20)
    return system.eval()


def batch_of(system: Any, samples: list[tuple[int, int]] = SAMPLES, pieces: bool = True) -> dict[str, Any]:
    made = toy.make_batch(samples, canvas=system.canvas_size)
    return collate(toy.add_pieces(made) if pieces else made)["data"]


def pooled_from_maps(paths: dict[str, str]) -> dict[str, Any]:
    """Parts in which objects are the given boxes."""
    config = toy.model_config(paths)
    return {"detector": config["high_res_encoder"], "box_reader": {"type": "mg_llava.RoIAlignBoxProjector"}}


def test_stage_2_starts_from_stage_1_with_every_key_accounted_for(paths: dict[str, str], tmp_path: Path) -> None:
    first = build(paths, "LyricsPretrain")
    torch.save({"state_dict": first.state_dict(), "meta": {}}, tmp_path / "stage1.pth")
    second = build(paths, "Lyrics", pretrained_pth=str(tmp_path / "stage1.pth"), fresh=["projector"])
    again = build(paths, "Lyrics")
    state = load_training_checkpoint(tmp_path / "stage1.pth")
    report = load_parts(again, state, "stage 1", {"mq_former"}, fresh=["projector"])
    assert not (report.missing or report.unknown or report.misshapen)
    assert report.ignored and all(key.startswith("heads.") for key in report.ignored)
    for name, tensor in first.mq_former.state_dict().items():
        assert torch.equal(again.mq_former.state_dict()[name], tensor)
        assert second.mq_former.state_dict()[name].shape == tensor.shape
    with pytest.raises(ValueError, match="the whole part projector is absent"):
        build(paths, "Lyrics", pretrained_pth=str(tmp_path / "stage1.pth"))


def test_stage_1_learns_all_its_losses(paths: dict[str, str]) -> None:
    for changes in ({}, pooled_from_maps(paths), {"detector": None, "mq_former": {"queries": [3]}}):
        config = cases.SYSTEMS["LyricsPretrain"](paths)
        changes = {key: {**config[key], **value} if key == "mq_former" else value for key, value in changes.items()}
        torch.manual_seed(3)
        system = MODELS.build({**config, **changes}).train()
        frozen = {k: v.clone() for k, v in system.visual_encoder.state_dict().items()}
        optimizer = torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=3e-3)
        batch, totals = batch_of(system, [(9, 1)] * 6), []
        for _ in range(40):
            losses = system(batch)
            assert set(losses) == {"loss_itc", "loss_itm", "loss_icg", "loss_msp"}
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            totals.append(float(losses["loss_itc"] + losses["loss_icg"]))
        assert totals[-1] < 0.8 * totals[0]
        assert all(torch.equal(v, frozen[k]) for k, v in system.visual_encoder.state_dict().items())
        assert system.loss_counts(batch) == [6, 6, 6]
        nothing = batch_of(system, [(5, 0), (6, 0)])
        assert system.loss_counts(nothing) == [0, 0, 0]
        assert all(float(value) == 0 for value in system(nothing).values())
        with pytest.raises(ValueError, match="3 pictures have 0 captions as word pieces; give the data set"):
            system(batch_of(system, pieces=False))


def test_tokens_follow_the_question(paths: dict[str, str]) -> None:
    system = build(paths, "Lyrics")
    canvas = batch_of(system)["canvas"][:1].expand(2, -1, -1, -1)
    boxes = [torch.zeros(0, 4)] * 2
    asked = system.encode(canvas, boxes, question=system.word_pieces(["a dog", "and 7 cats"]))
    assert [segment.kind for segment in asked[0]] == ["query"] and asked[0][0].tokens.shape == (7, toy.LLM_WIDTH)
    assert not torch.allclose(asked[0][0].tokens, asked[1][0].tokens, atol=1e-2)
    same = system.encode(canvas, boxes, question=system.word_pieces(["a dog", "a dog"]))
    torch.testing.assert_close(same[0][0].tokens, same[1][0].tokens)
    assert system.tokens_of(2, 5) == 14


def test_objects_of_given_boxes(paths: dict[str, str]) -> None:
    system = build(paths, "Lyrics", **pooled_from_maps(paths))
    canvas = batch_of(system)["canvas"][:1].expand(2, -1, -1, -1)
    box = torch.tensor([[2.0, 3.0, 20.0, 30.0]])
    none, one = system.encode(canvas, [box[:0], box])
    moved, _ = system.encode(canvas, [box + 4, box])
    assert not torch.allclose(none[0].tokens, one[0].tokens, atol=1e-3)
    assert not torch.allclose(moved[0].tokens, one[0].tokens, atol=1e-4)
    padded = padded_source([torch.ones(0, 3), torch.ones(2, 3)])
    assert padded.mask is not None and padded.mask.tolist() == [[False, False], [True, True]]
    assert padded_source([torch.ones(0, 3)]).states.shape == (1, 1, 3)


def test_a_sum_of_stages_is_pooled_as_all_of_them(paths: dict[str, str]) -> None:
    maps = pooled_from_maps(paths)
    plain, summed = (
        build(paths, "LyricsPretrain", **{**maps, "box_reader": {"type": f"mg_llava.{kind}"}})
        for kind in ("RoIAlignBoxProjector", "StageSumBoxProjector")
    )
    batch = batch_of(plain)
    found = [system.look(batch["canvas"], batch["boxes"]).pooled for system in (plain, summed)]
    assert torch.equal(*found) and not list(summed.box_reader.parameters())


@pytest.mark.parametrize("name", ["LyricsPretrain", "Lyrics"])
@pytest.mark.parametrize("pooled", [False, True])
def test_states_of_a_feature_cache_stand_for_the_encoders(
    name: str, pooled: bool, paths: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = pooled_from_maps(paths) if pooled else {}
    if name == "LyricsPretrain":
        changes["losses"] = [{"type": "mg_llava.AlignmentLoss", "match": 0}, {"type": "mg_llava.CaptionLoss"}]
    system = build(paths, name, **changes)
    reads = "caption" if name == "LyricsPretrain" else "question"
    size = {"type": "mg_llava.PictureProcessor", "image_size": system.canvas_size}
    extra = {"type": "mg_llava.PieceWriter", "vocabulary": toy.PIECES, "reads": reads}
    data = toy.write_data(tmp_path / "data", records=4)

    def source(**more: Any) -> Any:
        return features.make_source(data, paths["llm"], picture_processor=size, extra=extra, **more)

    plain = source()
    extractor = FeatureExtractor(system)
    assert ("objects" in extractor.sizes) == (not pooled) == (extractor.sizes["pooled"] is None)
    features.fill(plain, tmp_path / "cache", extractor)
    cached = source(feature_cache=tmp_path / "cache")
    system.cached.accept(cached.features.cache.about["encoders"], cached.features.cache.name)
    with torch.no_grad():
        expected = system(collate([plain[0], plain[1], plain[2]])["data"])
        mixed = system(collate([cached[0], plain[1], cached[2]])["data"])
        for encoder in (system.visual_encoder, system.detector):
            monkeypatch.setattr(encoder, "forward", None)
        found = system(collate([cached[0], cached[1], cached[2]])["data"])
    for loss, value in expected.items():
        torch.testing.assert_close(found[loss], value)
        torch.testing.assert_close(mixed[loss], value)
    if pooled:  # of the same encoders under other names
        with pytest.raises(ValueError, match="it says nothing of high_res_encoder, low_res_encoder; fill another"):
            MODELS.build(toy.model_config(paths, fusion=None)).cached.accept(
                {**cached.features.cache.about["encoders"]}, "there"
            )
    other = build(paths, name, **({} if pooled else pooled_from_maps(paths)))
    with pytest.raises(ValueError, match="the cache holds no"):
        other.cached.accept(cached.features.cache.about["encoders"], "there")


def test_a_segmenter_is_a_third_group_and_rows_may_be_packed(paths: dict[str, str]) -> None:
    former = cases.SYSTEMS["Lyrics"](paths)["mq_former"]
    sam = {"type": "mg_llava.SAMEncoder", "path": paths["sam"], "pool": 2, "dtype": "float32"}
    more = {"segmenter": sam, "mq_former": {**former, "queries": [3, 4, 2]}}
    system = build(paths, "Lyrics", **more)
    batch = batch_of(system)
    assert system.tokens_of(1, 0) == 9
    looked = system.look(batch["canvas"], batch["boxes"])
    plain = system.connect(looked, [0, 0, 0])
    tokens = looked.seen["segmenter"].tokens
    looked.seen["segmenter"] = looked.seen["segmenter"]._replace(tokens=tokens + 1)  # type: ignore[index]
    other = system.connect(looked, [0, 0, 0])
    assert not torch.allclose(plain[0][0].tokens, other[0][0].tokens, atol=1e-3)
    with torch.no_grad():
        packed = build(paths, "Lyrics", packing=64, **more)
        torch.testing.assert_close(packed(batch)["loss"], system(batch)["loss"])
    with pytest.raises(ValueError, match="segmenter is TransformerDetector, which gives no tokens"):
        build(paths, "Lyrics", **{**more, "segmenter": cases.SYSTEMS["Lyrics"](paths)["detector"]})


def settings_of(paths: dict[str, str], system: Any) -> dict[str, Any]:
    return {
        "model": cases.SYSTEMS["Lyrics"](paths),
        "tokenizer": {
            "type": "transformers.AutoTokenizer.from_pretrained",
            "pretrained_model_name_or_path": paths["llm"],
            "padding_side": "right",
        },
        "prompt_template": "vicuna",
        "picture_processor": {"type": "mg_llava.PictureProcessor", "image_size": system.canvas_size},
    }


def test_every_door_reads_the_question(paths: dict[str, str], tmp_path: Path) -> None:
    import mg_llava.hf

    system = build(paths, "Lyrics")
    config = settings_of(paths, system)
    meta = {"iter": 1, "epoch": 0, "seed": 0, "cfg": Config(config).pretty_text}
    torch.save({"meta": meta, "state_dict": system.state_dict(), "optimizer": {}}, tmp_path / "iter_1.pth")
    convert(tmp_path / "iter_1.pth", tmp_path / "hf", "hf")
    assert str(toy.PIECES[-1]) in (tmp_path / "hf" / "config.json").read_text()  # the words come along
    loaded = mg_llava.hf.MGLLaVAForConditionalGeneration.from_pretrained(tmp_path / "hf", torch_dtype=torch.float32)
    processor = mg_llava.hf.MGLLaVAProcessor.from_pretrained(tmp_path / "hf")
    picture = Image.effect_noise((50, 40), 90).convert("RGB")
    predictor = Predictor.from_pretrained(Config(config), tmp_path / "iter_1.pth", device="cpu", max_new_tokens=6)
    texts = {}
    for question in ("a dog", "and 7 cats"):
        row = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        inputs = processor(conversation=row, images=picture)
        assert inputs["questions"] == [question]
        sample = {
            "input_ids": inputs["input_ids"][0],
            "images": [inputs["pixel_values"][0]],
            "boxes": [torch.zeros(0, 4)],
            "extra": {"pieces": [system.pieces.words.question(question)]},
        }
        with torch.no_grad():
            found = loaded(**inputs).logits
            expected: Tensor = system(collate([sample])["data"], mode="tensor")["logits"]
            torch.testing.assert_close(found, expected)
            unasked = loaded(**{**inputs, "questions": None}).logits
            assert not torch.allclose(unasked, found, atol=1e-3)
        output = loaded.generate(**inputs, max_new_tokens=6)
        texts[question] = processor.decode_answers(output, inputs["input_ids"])[0]
        assert predictor.predict(picture, question).text == texts[question]
    # together, in one window, the picture is encoded for each question
    answers = predictor.predict_many([Request(question, picture) for question in texts])
    assert [answer.text for answer in answers] == list(texts.values())
    with pytest.raises(ValueError, match="this model reads questions apart; give conversation"):
        processor("USER: <image>\nwhat ASSISTANT:", picture)


def test_a_stage_without_llm_answers_nothing(paths: dict[str, str], tmp_path: Path) -> None:
    system = build(paths, "LyricsPretrain")
    torch.save(dict(system.state_dict()), tmp_path / "stage1.pth")
    config = Config({**settings_of(paths, system), "model": cases.SYSTEMS["LyricsPretrain"](paths)})
    with pytest.raises(ValueError, match="LyricsPretrain has no LLM that could answer"):
        Predictor.from_pretrained(config, tmp_path / "stage1.pth", device="cpu")


def test_questions_are_what_was_asked_so_far() -> None:
    turns = [Turn("human", "<image>\nwhat is it?"), Turn("gpt", "a dog"), Turn("human", "and <image> that?")]
    assert question_of(turns) == "what is it?\nand   that?"


def test_impossible_combinations_are_one_message(paths: dict[str, str]) -> None:
    config = cases.SYSTEMS["Lyrics"](paths)
    maps = pooled_from_maps(paths)
    with pytest.raises(ValueError, match=r"visual_encoder is Transf.*no tokens.*detector is CLIPEncoder, which d"):
        MODELS.build({**config, "visual_encoder": config["detector"], "detector": config["visual_encoder"]})
    with pytest.raises(ValueError, match="finds its own objects; set box_reader=None"):
        MODELS.build({**config, "box_reader": maps["box_reader"]})
    with pytest.raises(ValueError, match="which is None; give both or neither"):
        MODELS.build({**config, "detector": None, "box_reader": maps["box_reader"]})
    with pytest.raises(ValueError, match=r"2 groups of queries .* for 1 sources"):
        MODELS.build({**config, "detector": None})
    reader = {**maps["box_reader"], "stages": [9], "stage_channels": [1]}
    with pytest.raises(ValueError, match=r"box_reader has stage_channels=\[1\], .*; box_reader: stages=\[9\] must be"):
        MODELS.build({**config, **maps, "box_reader": reader})
    unread = {**config, **maps, "box_reader": {**maps["box_reader"], "stages": [0]}, "trains": ["detector"]}
    with pytest.raises(ValueError, match="detector is in trains, but nothing reads its last stage"):
        MODELS.build(unread)
    with pytest.raises(ValueError, match="projector has in_channels=3, but the other parts give 16; leave it out"):
        MODELS.build({**config, "projector": {**config["projector"], "in_channels": 3}})
    with pytest.raises(ValueError, match="LyricsPretrain trains none"):
        MODELS.build({**cases.SYSTEMS["LyricsPretrain"](paths), "llm": config["llm"]})


@pytest.mark.parametrize("samples", [SAMPLES, [(9, 0), (6, 0)]])
def test_a_step_of_stage_2_reads_no_value(paths: dict[str, str], samples: list[tuple[int, int]]) -> None:
    system = build(paths, "Lyrics").train()
    batch = batch_of(system, samples)
    with NoReads():
        step(system, batch)


def test_padding_of_given_boxes_is_left_out_again() -> None:
    joined = padded_source([torch.rand(count, 5) for count in (3, 0, 1)])
    again = _join([[Segment("source", _row(joined, row, [3, 0, 1]))] for row in range(3)])[0]
    assert joined.mask is not None and again.mask is not None
    assert torch.equal(again.states, joined.states) and torch.equal(again.mask, joined.mask)
    assert again.mask.sum(dim=1).tolist() == [3, 0, 1]
