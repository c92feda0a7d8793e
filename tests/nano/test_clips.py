"""Clips of the miniature: what is asked about them, how they are drawn and kept, how the LLM reads them as text."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from mg_llava.data.pictures.video import read_frames
from mg_llava.data.records.schema import parse_record
from mg_llava.experiments.grid import read_grid

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "data" / "nano"
SIZES = {"train": 6, "heldout": 8}


@pytest.fixture(scope="module")
def nano() -> Iterator[Any]:
    sys.path.insert(0, str(NANO))
    import clips
    import clips_benchmark
    import clips_llm
    import scenes

    yield SimpleNamespace(clips=clips, llm=clips_llm, benchmark=clips_benchmark, scenes=scenes)
    sys.path.remove(str(NANO))


@pytest.fixture(scope="module")
def made(nano: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("av", reason="writing videos needs PyAV")
    out = tmp_path_factory.mktemp("data") / "clips"
    nano.clips.prepare(out, SIZES)
    return out


def test_answers_follow_from_all_frames_and_from_no_single_one(nano: Any) -> None:
    """But for "before" of the last digit, whose answer the middle frame shows."""
    rng = np.random.default_rng(0)
    for sort in ("order", *nano.clips.CHANGE):
        for _ in range(40):
            clip = nano.clips.sample_clip(rng, sort)
            first, middle, last = (clip.digits(frame) for frame in range(3))
            asked = {one.kind: one for one in nano.clips.questions(rng, clip)}
            for items in clip.frames:
                assert len({item[1:3] for item in items}) == len(items), "a cell holds one mark"
            if sort == "order":
                seen = [*first, *middle, *last]
                assert len(set(seen)) == 3 and asked["order"].answer == ", ".join(map(str, seen))
                assert (asked["first"].answer, asked["last"].answer) == (str(seen[0]), str(seen[2]))
                place = seen.index(int(asked["before"].question[-2]))
                assert asked["before"].answer == str(seen[place - 1]) and place > 0
                continue
            (answer,) = (int(one.answer) for one in asked.values())
            there = [answer in own for own in (first, last)]
            assert there == {"appears": [False, True], "disappears": [True, False], "moves": [True, True]}[sort]
            assert set(first) ^ set(last) == (set() if sort == "moves" else {answer}) and len(first) + len(last) >= 3


def test_frames_show_what_changes_alone(nano: Any) -> None:
    clip = nano.clips.sample_clip(np.random.default_rng(5), "moves")
    frames = nano.clips.draw_clip(np.random.default_rng(6), "heldout", clip)
    again = nano.clips.draw_clip(np.random.default_rng(6), "heldout", clip)
    assert all(np.array_equal(one, two) for one, two in zip(frames, again, strict=True))
    cell = nano.scenes.CELL
    change = np.abs(np.asarray(frames[0], float) - np.asarray(frames[2], float)).mean(axis=2)
    largest = change.reshape(nano.scenes.GRID, cell, nano.scenes.GRID, cell).max(axis=(1, 3))
    moved = {item[1:3] for item in set(clip.frames[0]) ^ set(clip.frames[2])}
    assert {tuple(place) for place in np.argwhere(largest > 40).tolist()} == moved and len(moved) == 2


def test_files(nano: Any, made: Path, tmp_path: Path, capsys: Any) -> None:
    """Records, held-out questions of all kinds, and videos whose bytes depend on the seed alone."""
    records = [parse_record(raw) for raw in json.loads((made / "train.json").read_text())]
    assert len(records) == SIZES["train"] and all(record.video for record in records)
    nano.clips.prepare(made, SIZES)
    assert "nothing to do" in capsys.readouterr().out
    nano.clips.prepare(tmp_path / "again", SIZES)
    for name in ("heldout.jsonl", "train.json", "videos/heldout/00003.mp4", "middle/train/00001.mp4"):
        assert (made / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    whole = read_frames(made / "videos" / "heldout/00000.mp4", 3)
    (middle,) = read_frames(made / "middle" / "heldout/00000.mp4", 1)
    differences = [np.abs(np.asarray(frame, float) - np.asarray(middle, float)).mean() for frame in whole]
    assert differences[1] < 2 and min(differences[0], differences[2]) >= differences[1]


def test_the_benchmark_shows_one_frame_to_a_model_of_one(
    nano: Any, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.loads(line) for line in (made / "heldout.jsonl").read_text().splitlines()]
    benchmark = nano.benchmark.NanoClips(made / "heldout.jsonl")
    questions = benchmark.questions()
    assert [question.id for question in questions] == [line["id"] for line in lines]
    assert len(questions[0].picture()) == questions[0].frames == 3 and questions[0].text.startswith("<video>\n")
    right = [{"id": line["id"], "prediction": line["answer"]} for line in lines]
    kinds = benchmark.score(right)["rules"]["exact"]["metrics"]["kinds"]
    assert set(kinds) <= set(nano.clips.KINDS) and set(kinds.values()) == {1.0}
    monkeypatch.setattr(nano.benchmark.NanoClips, "frames", 1)
    (frame,) = benchmark.questions()[0].picture()
    assert np.array_equal(frame, read_frames(made / "middle" / lines[0]["image"], 1)[0])


def test_the_llm_reads_frames_one_after_the_other(nano: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(NANO / "llm")
    import pretrain_llm
    import rendering
    from torch import nn

    renderer = rendering.Renderer(nn.Embedding(len(tokenizer), 8), tokenizer)
    sampler = nano.llm.ClipSampler(pretrain_llm.Writer(tokenizer), renderer, 4, nano.llm.PHASES[0])
    rng = np.random.default_rng(0)
    clip = nano.clips.sample_clip(rng, "order")
    words, _, places = sampler.render(rng, clip)
    expected = [
        64 * number + 8 * row + column for number, items in enumerate(clip.frames) for _, row, column, _ in items
    ]
    assert places.tolist() == sorted({*expected, 191}), "marks, and the last place"
    for number in range(3):
        ((digit, row, column, _),) = [item for item in clip.frames[number] if item[0] >= 0]
        token = places.tolist().index(64 * number + 8 * row + column)
        assert words[token, rendering.CONTENT] == renderer.digits[digit]
    embeddings, labels, positions = sampler.batch(rng, 4)
    assert embeddings.shape[:2] == labels.shape == positions.shape and (labels != pretrain_llm.IGNORE).any()


def test_the_grid_names_leaves_that_differ_in_frames_alone() -> None:
    from mmengine.config import Config

    grid = read_grid(NANO / "clips_grid.py")
    middle, frames = (Config.fromfile(ROOT / row.leaves[-1]).to_dict() for row in grid.rows)
    assert middle["picture_processor"]["video"]["frames"] == 1 and frames["picture_processor"]["video"]["frames"] == 3
    sources = frames["train_dataloader"]["dataset"]["sources"]
    assert sources[1]["image_folder"].endswith("clips/videos")
    for config in (middle, frames):
        config["picture_processor"]["video"]["frames"] = None
        for part in (config, config["train_dataloader"]["dataset"], config["test_dataloader"]["dataset"]):
            part["picture_processor"] = None
        config["train_dataloader"]["dataset"]["sources"][1]["image_folder"] = None
    assert middle == frames
