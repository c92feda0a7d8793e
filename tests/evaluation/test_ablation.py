"""Settings of an ablation, the switch of the fusion, and the table of differences."""

import pytest
import torch

from mg_llava.evaluation.ablation import Setting, compare, format_differences, fusion_off, parse_settings
from mg_llava.models.interfaces import Seeing
from tests import toy


def result(scores: dict[str, float]) -> dict:
    entries = [{"id": name, "score": score} for name, score in scores.items()]
    mean = sum(scores.values()) / len(scores)
    return {"n": len(scores), "rules": {"official": {"metrics": {"a": {"f1": mean}}, "per_sample": entries}}}


RIGHT = {str(i): float(i % 3 > 0) for i in range(90)}
LESS = {name: 0.0 if int(name) < 30 else score for name, score in RIGHT.items()}


def test_settings_are_all_combinations_baseline_first() -> None:
    settings = parse_settings("detected, none,jitter=0.1", "on,off")
    assert [(setting.boxes, setting.fusion) for setting in settings] == [
        ("detected", True),
        ("none", True),
        ("jitter=0.1", True),
        ("detected", False),
        ("none", False),
        ("jitter=0.1", False),
    ]
    assert len({setting.folder for setting in settings}) == 6
    assert not any(set(setting.folder) & set("/\\ :") for setting in settings)
    assert Setting("a/x.json").folder != Setting("b/x.json").folder


@pytest.mark.parametrize(
    ("boxes", "fusion", "message"),
    [("detected,nine", "on", "nine"), ("none", "of", "allowed: on, off"), ("none,none", "on", "twice")],
)
def test_wrong_settings_are_named(boxes: str, fusion: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_settings(boxes, fusion)


def test_fusion_off_is_the_identity_and_leaves_no_trace(toy_paths: dict[str, str]) -> None:
    model = toy.build_model(toy_paths).eval()
    images = torch.randint(0, 256, (2, 3, toy.CANVAS, toy.CANVAS), dtype=torch.uint8)
    boxes = [torch.tensor([[4.0, 4, 30, 40]])] * 2
    keys = list(model.state_dict())
    with torch.no_grad():
        on = model.encode(images, boxes)
        with fusion_off(model):
            off = model.encode(images, boxes)
        again = model.encode(images, boxes)
        fusion = model.fuse_module
        for projection in (fusion.slow_proj, fusion.fast_proj):  # untrained, the fusion is the identity itself
            torch.nn.init.zeros_(projection.weight)
        identity = model.encode(images, boxes)

    def tokens(seeing: Seeing, kind: str) -> torch.Tensor:
        return torch.cat([part.tokens for segments in seeing for part in segments if part.kind == kind])

    assert torch.equal(tokens(off, "visual"), tokens(identity, "visual"))
    assert not torch.allclose(tokens(on, "visual"), tokens(off, "visual"))
    assert torch.equal(tokens(on, "visual"), tokens(again, "visual"))
    assert torch.equal(tokens(on, "object"), tokens(off, "object"))
    assert list(model.state_dict()) == keys


def test_fusion_comes_back_after_an_error(toy_paths: dict[str, str]) -> None:
    model = toy.build_model(toy_paths)
    with pytest.raises(RuntimeError, match="stop"), fusion_off(model):
        raise RuntimeError("stop")
    assert model.fuse_module is not None
    model.fuse_module.out_channels = 7
    with pytest.raises(ValueError, match="7 channels"), fusion_off(model):
        pass
    model.fuse_module = None
    with pytest.raises(ValueError, match="no fusion"), fusion_off(model):
        pass


def test_differences_are_paired_and_quote_the_headline() -> None:
    settings = {"all": {"b": result(RIGHT)}, "less": {"b": result(LESS)}, "same": {"b": result(RIGHT)}}
    less, same = compare(settings, {"b": ("official", "a.f1")})
    assert (less.score, less.baseline) == (pytest.approx(40 / 90), pytest.approx(60 / 90))
    assert less.interval.mean == pytest.approx(-20 / 90) and less.interval.excludes_zero
    assert less.metric_value == pytest.approx(40 / 90) and less.metric_baseline == pytest.approx(60 / 90)
    assert same.interval.mean == 0 and not same.interval.excludes_zero
    table = format_differences([less, same], "all")
    assert "-22.2" in table and table.count("*") == 2  # the row, and the note on what it means
    grouped, _ = compare(settings, groups={"b": {name: int(name) // 30 for name in RIGHT}})
    assert grouped.interval.low < less.interval.low


def test_a_split_without_answers_has_no_differences() -> None:
    assert compare({"a": {"b": {"rules": {}}}, "c": {"b": {"rules": {}}}}) == []
    assert "nothing" in format_differences([], "a")


def test_without_prompt_and_objects(tmp_path) -> None:
    """Each is left out inside its context alone; systems that have none of it are refused."""
    from mg_llava.evaluation.ablation import applied
    from tests.contract import cases
    from tests.inference.test_objects import predictor
    from tests.models.systems.test_refinement import build, stir

    paths = cases.write_all(tmp_path)
    settings = parse_settings("none", "on", "prompt,objects")
    assert [setting.without for setting in settings] == ["", "prompt", "objects"]
    assert len({setting.folder for setting in settings}) == len({setting.name for setting in settings}) == 3
    asked = predictor(paths, stir(build(paths)))
    system, front_end = asked.model, asked.front_end
    canvas = {"canvas": torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "boxes": [torch.zeros(0, 4)]}
    with torch.no_grad():
        ((with_objects,),) = system.see(canvas)
        looked = system.look(**canvas)
        own = system.objects(torch.cat([*looked.seen["detector"].detected[:2]], dim=-1))[0]
        with applied(settings[1], asked):
            assert asked.front_end.parts == () and torch.equal(system.see(canvas)[0][0].tokens, with_objects.tokens)
        with applied(settings[2], asked):
            assert asked.front_end is front_end
            without = system.see(canvas)[0][0].tokens
        assert torch.allclose(with_objects.tokens - without, own, atol=1e-4) and own.abs().max() > 0.1
        assert torch.equal(system.see(canvas)[0][0].tokens, with_objects.tokens) and asked.front_end is front_end
    with pytest.raises(ValueError, match="'picture' is unknown; allowed: prompt, objects"):
        parse_settings("none", without="picture")
    bare = predictor(paths, build(paths, detector=None, objects=None, refine=None))
    with pytest.raises(ValueError, match="no object branch"), applied(settings[2], bare):
        pass
