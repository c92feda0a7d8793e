"""Measures of Lyrics' first stage, against counting by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mg_llava.data.dataset import LLaVADataset
from mg_llava.evaluation.grounding import is_near, measure_grounding, recalls
from mg_llava.pieces import WordPieces
from mg_llava.registry import MODELS
from tests import toy
from tests.contract import cases


def test_recalls_count_better_ones() -> None:
    table = torch.eye(12) + 0.01 * torch.arange(12)
    table[0, 1:8] = 2  # seven texts are nearer to the first picture than its own
    found = recalls(table)
    assert found["text_recall_1"] == found["text_recall_5"] == pytest.approx(11 / 12)
    assert found["text_recall_10"] == 1.0
    assert found["picture_recall_1"] == pytest.approx(5 / 12)  # of the texts that the first picture is nearer to
    assert found["picture_recall_5"] == 1.0


def test_coordinates_within_a_step() -> None:
    words = WordPieces(toy.PIECES)
    ids = lambda text: words.split(text)  # noqa: E731
    for given, right, near in (("3", "4", True), ("3", "5", False), ("0.1", "0.2", True), ("0.1", "0.3", False)):
        assert is_near(words, ids(given), ids(right)) == near
    assert is_near(words, ids("7"), ids("7")) and not is_near(words, ids("dog"), ids("7"))


def test_a_trained_system_tells_apart_what_it_has_seen(tmp_path: Path) -> None:
    paths = cases.write_all(tmp_path)
    data = toy.write_data(tmp_path / "data", records=8)
    config: dict[str, Any] = cases.SYSTEMS["LyricsPretrain"](paths)
    torch.manual_seed(0)
    system = MODELS.build({**config, "mq_former": {**config["mq_former"], "dropout": 0.0, "positions": 128}})
    dataset = LLaVADataset(
        **data,
        tokenizer=paths["llm"],
        template="vicuna",
        picture_processor=dict(type="mg_llava.PictureProcessor", image_size=system.canvas_size),
        boxes=dict(extra=dict(type="mg_llava.PieceWriter", vocabulary=toy.PIECES)),
    )
    found = measure_grounding(system, dataset, rounds=2)
    assert found["pictures"] == 7  # of eight records two have no picture, one has two
    for name in ("with_items", "without_items"):
        assert set(found[name]) == {
            *(f"{side}_recall_{rank}" for side in ("text", "picture") for rank in (1, 5, 10)),
            "match",
        }
        assert found[name]["text_recall_10"] == 1.0  # of seven
    assert found["masked"]["coordinates"] > found["masked"]["names"] > 0
    assert found == measure_grounding(system, dataset, rounds=2)  # with its own seed
    # a head that always says no is right about two of three pairs
    with torch.no_grad():
        system.heads.itm_head.weight.zero_()
        system.heads.itm_head.bias.copy_(torch.tensor([1.0, 0.0]))
        system.heads.decoder.weight.zero_()
        system.heads.decoder.bias.zero_()
        system.heads.decoder.bias[system.pieces.words.id_of("a")] = 1.0
    again = measure_grounding(system, dataset)
    assert again["with_items"]["match"] == pytest.approx(2 / 3)
    assert 0 < again["masked"]["name_exact"] < 1 and again["masked"]["coordinate_exact"] == 0  # names are a and b
    with pytest.raises(ValueError, match="fewer than two pictures with texts"):
        measure_grounding(system, dataset, count=1)
