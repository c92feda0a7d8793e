"""The runner: replies do not depend on batches, processes or interruptions, and what goes wrong is counted."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mg_llava.data.pictures.files import PictureError
from mg_llava.data.records.schema import NO_BOXES, make_box_record
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.box_source import FoundBoxes, build_box_source
from mg_llava.evaluation.replies import OtherRunError, Replies
from mg_llava.evaluation.results import RunResult
from mg_llava.evaluation.runner import Asking, run_benchmark
from mg_llava.inference import Predictor
from mg_llava.inference.encoding import Statistics
from mg_llava.work.processes import Processes
from tests import toy
from tests.videos import write_video

PROCESSOR = {"type": "mg_llava.PictureProcessor", "image_size": toy.CANVAS}
WORDS = "what is there two digits and a picture in which it was seen".split()


class ToyBenchmark(Benchmark):
    """Questions of different lengths about noise; three for each picture, and the last one about none."""

    scorer = "toy"
    headline = ("exact", "accuracy")
    max_new_tokens = 5

    def __init__(self, folder: Path, pictures: int = 5, broken: Sequence[int] = (), name: str = "toy") -> None:
        file = folder / "toy.json"
        if not file.exists():  # a run that is resumed, or a second process, finds it unchanged
            file.write_text("{}")
        super().__init__(folder / "toy.json", name=name)
        self.pictures, self.broken = pictures, set(broken)
        self.opened: Counter[int] = Counter()

    def open(self, number: int) -> Image.Image:
        self.opened[number] += 1
        if number in self.broken:
            raise PictureError(f"picture {number} of toy.json cannot be read")
        pixels = np.random.default_rng(number).integers(0, 256, (40 + number % 7, 64, 3))
        return Image.fromarray(pixels.astype(np.uint8))

    def questions(self) -> list[Question]:
        rng = np.random.default_rng(0)
        found = []
        for n in range(3 * self.pictures):
            text = " ".join(rng.choice(WORDS, int(rng.integers(1, 9)))) + "?"
            number = n % self.pictures
            found.append(Question(n, text, lambda number=number: self.open(number), f"p{number}", f"p{number}"))
        return [*found, Question(3 * self.pictures, "what is there?")]

    def score(self, predictions: Sequence[dict], **options: Any) -> dict:
        texts = {line["index"]: line["prediction"] for line in predictions}
        rows = [{"id": q.id, "score": float("a" in texts.get(q.id, "")), "parsed": texts.get(q.id)} for q in self.all]
        accuracy = sum(row["score"] for row in rows) / len(rows)
        missing = sum(row["parsed"] is None for row in rows)
        rule = {"metrics": {"accuracy": accuracy}, "per_sample": rows}
        return {"benchmark": self.name, "n": len(rows), "n_missing": missing, "n_unknown": 0, "rules": {"exact": rule}}

    @property
    def all(self) -> list[Question]:
        return self.questions()


@pytest.fixture(scope="module")
def predictor(toy_paths: dict[str, str]) -> Predictor:
    return Predictor(toy.build_model(toy_paths), toy_paths["llm"], "vicuna", PROCESSOR)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Boxes of the first three pictures."""
    boxes = [
        {"id": f"p{i}", "boxes": [[4, 6, 20 + i, 30], [10, 10, 38, 34]], "scores": [0.9, 0.4], "labels": ["a", "b"]}
        for i in range(3)
    ]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(boxes))
    return path


def run(predictor: Predictor, benchmark: Benchmark, out: Path, **options: Any) -> RunResult:
    names = {field.name for field in fields(Asking)} & set(options)
    asking = Asking(**{"batch_size": 4, **{name: options.pop(name) for name in names}})
    options = {"model_identity": {"name": "toy"}, **options}
    result = run_benchmark(benchmark, predictor, out, asking=asking, **options)
    assert result is not None
    return result


def final(out: Path, name: str = "toy") -> str:
    return (out / name / "predictions.jsonl").read_text()


def test_batches_do_not_change_replies(predictor: Predictor, tmp_path: Path, store: Path) -> None:
    results = {}
    for size in (1, 3, 16):
        benchmark = ToyBenchmark(tmp_path)
        out = tmp_path / str(size)
        results[size] = run(predictor, benchmark, out, batch_size=size, boxes=build_box_source("detected", store))
        assert set(benchmark.opened.values()) == {1}, "each picture is opened once although three questions share it"
    texts = [json.loads(line)["prediction"] for line in final(tmp_path / "1").splitlines()]
    assert len(texts) == 16 and len(set(texts)) > 8
    assert final(tmp_path / "1") == final(tmp_path / "3") == final(tmp_path / "16")
    one = results[1]
    assert one.counts == results[16].counts
    assert one.counts["asked"] == one.counts["answered"] == 16 and one.counts["pictures"] == 5
    assert one.boxes["with"] == 9 and one.boxes["without"] == 6
    assert one.boxes["counts"] == {"with": 9, "without": 6}
    assert one.headline["value"] == one.score["rules"]["exact"]["metrics"]["accuracy"]
    written = json.loads((tmp_path / "1" / "toy" / "results.json").read_text())
    assert written["generation"]["max_new_tokens"] == 5 and written["counts"] == one.counts
    assert "torch" in written["packages"] and "per_sample" not in written["score"]["rules"]["exact"]
    with_boxes = next(sample for sample in one.samples if sample["id"] == 0)
    assert with_boxes["boxes"] == 2 and with_boxes["confidence"] == 0.65 and 0 < with_boxes["size"] < 1


def test_pictures_are_encoded_once(predictor: Predictor, tmp_path: Path, store: Path) -> None:
    predictor.statistics = Statistics()
    source = build_box_source("detected", store)
    run(predictor, ToyBenchmark(tmp_path), tmp_path, boxes=source, batch_size=2, exact=False)
    assert (predictor.statistics.pictures, predictor.statistics.encodings) == (5, 3)


def test_close_calls_are_decided_alone(toy_paths: dict[str, str], tmp_path: Path) -> None:
    model = toy.build_model(toy_paths)
    head = model.llm.get_output_embeddings().weight
    with torch.no_grad():
        head[1::2] = head[::2]  # each token has another that is as good
    predictor = Predictor(model, toy_paths["llm"], "vicuna", PROCESSOR)
    run(predictor, ToyBenchmark(tmp_path), tmp_path / "single", batch_size=1)
    assert predictor.statistics.rows == 16 and predictor.statistics.alone == 0
    predictor.statistics = Statistics()
    run(predictor, ToyBenchmark(tmp_path), tmp_path / "close", batch_size=16)
    assert predictor.statistics.alone == 15, "the questions about pictures"
    assert predictor.statistics.rows == 31, "and the one without a picture, which is alone anyway"
    assert final(tmp_path / "single") == final(tmp_path / "close")


def test_prefixes_are_read_once(predictor: Predictor, tmp_path: Path) -> None:
    predictor.statistics = Statistics()
    run(predictor, ToyBenchmark(tmp_path), tmp_path / "shared", batch_size=16, exact=False)
    assert predictor.statistics.prefixes == 5, "five pictures, of three questions each"
    assert predictor.statistics.rows == 16
    run(predictor, ToyBenchmark(tmp_path), tmp_path / "penalty", batch_size=16, repetition_penalty=1.2)
    run(predictor, ToyBenchmark(tmp_path), tmp_path / "single", batch_size=1, repetition_penalty=1.2)
    assert final(tmp_path / "penalty") == final(tmp_path / "single") != final(tmp_path / "shared")


def test_habits_of_the_llm_folder_do_not_change_replies(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(predictor, ToyBenchmark(tmp_path), tmp_path / "plain", batch_size=1)
    monkeypatch.setattr(predictor.model.llm.generation_config, "repetition_penalty", 1.2)
    monkeypatch.setattr(predictor.model.llm.generation_config, "do_sample", True)
    for size in (1, 16):
        run(predictor, ToyBenchmark(tmp_path), tmp_path / str(size), batch_size=size)
        assert final(tmp_path / str(size)) == final(tmp_path / "plain")


def test_boxes_of_questions_about_one_picture_may_differ(predictor: Predictor, tmp_path: Path) -> None:
    class PerQuestion:
        def look_up(self, question: Question, images: Sequence[Any] = ()) -> FoundBoxes:
            n = int(question.id) % 4
            return FoundBoxes(
                (NO_BOXES if n == 0 else make_box_record([[n, 2, 20 + 8 * n, 30]]),), {"with": int(n > 0)}
            )

        def describe(self) -> dict[str, Any]:
            return {"spec": "per question"}

    for size in (1, 16):
        run(predictor, ToyBenchmark(tmp_path), tmp_path / str(size), boxes=PerQuestion(), batch_size=size)
    run(predictor, ToyBenchmark(tmp_path), tmp_path / "none", batch_size=16)
    assert final(tmp_path / "1") == final(tmp_path / "16") != final(tmp_path / "none")


@pytest.mark.parametrize("half_line", [b"", b'{"n": 7, "id": 7, "te', b"\x00\x00\x00"])
def test_a_killed_run_goes_on(predictor: Predictor, tmp_path: Path, half_line: bytes) -> None:
    run(predictor, ToyBenchmark(tmp_path), tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done >= 8:
            raise Killed

    with pytest.raises(Killed):
        run(predictor, ToyBenchmark(tmp_path), tmp_path / "killed", progress=kill)
    part = tmp_path / "killed" / "toy" / "replies.part0.journal"
    assert part.read_bytes().count(b"\n") == 11 and not (tmp_path / "killed" / "toy" / "predictions.jsonl").exists()
    with part.open("ab") as file:
        file.write(half_line)
    resumed = run(predictor, ToyBenchmark(tmp_path), tmp_path / "killed")
    assert resumed.counts["resumed"] == 11 and resumed.counts["answered"] == 16
    assert final(tmp_path / "killed") == final(tmp_path / "whole")
    again = run(predictor, ToyBenchmark(tmp_path), tmp_path / "killed")
    assert again.counts["resumed"] == 16 and part.read_bytes().count(b"\n") == 16


class Threads(Processes):
    """Threads that stand for processes."""

    def __init__(self, rank: int, size: int, meeting: threading.Barrier, values: dict[int, Any]) -> None:
        self.rank, self.size, self.meeting, self.values = rank, size, meeting, values

    def gather(self, value: Any = None) -> list[Any]:
        self.values[self.rank] = value
        self.meeting.wait()
        gathered = [self.values[rank] for rank in range(self.size)]
        self.meeting.wait()
        return gathered


def run_threads(count: int, call: Callable[[Processes], Any]) -> list[Any]:
    meeting, values, results = threading.Barrier(count, timeout=60), {}, {}  # type: ignore[var-annotated]
    threads = [
        threading.Thread(target=lambda r=r: results.update({r: call(Threads(r, count, meeting, values))}))
        for r in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(count)]


def test_two_processes_are_one(toy_paths: dict[str, str], predictor: Predictor, tmp_path: Path, store: Path) -> None:
    source = build_box_source("detected", store)
    wanted = run(predictor, ToyBenchmark(tmp_path, broken=[3]), tmp_path / "one", boxes=source)
    predictors = [Predictor(toy.build_model(toy_paths), toy_paths["llm"], "vicuna", PROCESSOR) for _ in range(2)]
    first, second = run_threads(
        2,
        lambda processes: run_benchmark(
            ToyBenchmark(tmp_path, broken=[3]),
            predictors[processes.rank],
            tmp_path / "two",
            build_box_source("detected", store),
            Asking(4),
            model_identity={"name": "toy"},
            processes=processes,
        ),
    )
    assert second is None
    assert final(tmp_path / "one") == final(tmp_path / "two")
    parts = [tmp_path / "two" / "toy" / f"replies.part{rank}.journal" for rank in range(2)]
    assert [part.read_bytes().count(b'"text"') for part in parts] == [
        9,
        4,
    ]  # pictures 0, 2, 4; picture 1 and the question without one
    assert first.counts == wanted.counts and first.score == wanted.score
    assert first.boxes["counts"] == wanted.boxes["counts"] and first.failures == wanted.failures
    resumed = run(predictor, ToyBenchmark(tmp_path, broken=[3]), tmp_path / "two", boxes=source)
    assert resumed.counts["resumed"] == 13


def test_only_the_same_run_is_resumed(predictor: Predictor, tmp_path: Path, store: Path) -> None:
    run(predictor, ToyBenchmark(tmp_path), tmp_path / "out", limit=2)
    for changes, message in [
        ({"model_identity": {"name": "other"}}, "model.name was 'toy', is 'other'"),
        ({"max_new_tokens": 7}, "generation.max_new_tokens was 5, is 7"),
        ({"boxes": build_box_source("detected", store)}, r"boxes.spec was 'none', is 'detected'"),
    ]:
        with pytest.raises(OtherRunError, match=message):
            run(predictor, ToyBenchmark(tmp_path), tmp_path / "out", **changes)
    other = ToyBenchmark(tmp_path)
    other.prompt = "another"
    with pytest.raises(OtherRunError, match=r"benchmark.prompt was 'reference', is 'another'.*--fresh"):
        run(predictor, other, tmp_path / "out")
    with pytest.raises(OtherRunError, match="questions was"):
        run(predictor, ToyBenchmark(tmp_path, pictures=4), tmp_path / "out")
    fresh = run(predictor, other, tmp_path / "out", fresh=True, limit=3)
    assert fresh.counts["resumed"] == 0 and fresh.counts["answered"] == 3


def test_limit_is_extended(predictor: Predictor, tmp_path: Path) -> None:
    part = run(predictor, ToyBenchmark(tmp_path), tmp_path, limit=5)
    assert part.score["n"] == 5 and part.score["n_missing"] == 0 and "first 5 of 16" in part.score["warnings"][0]
    assert part.headline == {"rule": "exact", "metric": "mean_score", "value": pytest.approx(part.headline["value"])}
    assert len(part.score["rules"]["exact"]["per_sample"]) == 5
    whole = run(predictor, ToyBenchmark(tmp_path), tmp_path)
    assert whole.counts["resumed"] == 5 and whole.score["n"] == 16 and whole.headline["metric"] == "accuracy"


def test_limited_scores_are_of_what_was_asked(predictor: Predictor, tmp_path: Path) -> None:
    class Circular(ToyBenchmark):
        """Scores as of circular tables: a question is right if its copies are, which were not asked."""

        def score(self, predictions: Sequence[dict], **options: Any) -> dict:
            entries = [{"id": n, "score": 0.0, "vanilla": 1.0} for n in range(8)]
            return {"n": 8, "rules": {"exact": {"metrics": {"accuracy": 0.0}, "per_sample": entries}}}

    class Repeated(ToyBenchmark):
        """Ids that come again, as in POPE's splits."""

        def score(self, predictions: Sequence[dict], **options: Any) -> dict:
            entries = [{"id": n % 4, "score": float(n < 4)} for n in range(16)]
            return {"n": 16, "rules": {"exact": {"metrics": {"accuracy": 0.25}, "per_sample": entries}}}

    circular = run(predictor, Circular(tmp_path), tmp_path / "circular", limit=3)
    assert circular.headline["value"] == 1.0 and len(circular.score["rules"]["exact"]["per_sample"]) == 3
    repeated = run(predictor, Repeated(tmp_path), tmp_path / "repeated", limit=8)
    assert repeated.headline["value"] == 0.5


def test_bad_samples(predictor: Predictor, tmp_path: Path) -> None:
    class WithLong(ToyBenchmark):
        def questions(self) -> list[Question]:
            return [*super().questions(), Question(16, "z" * 600), Question(17, " ")]

    result = run(predictor, WithLong(tmp_path, broken=[1]), tmp_path / "out")
    assert result.counts["failed"] == 5 and result.counts["answered"] == 13
    assert result.score["n_missing"] == 5
    errors = {failure["id"]: failure["error"] for failure in result.failures}
    assert sorted(errors) == [1, 6, 11, 16, 17]
    assert "picture 1 of toy.json" in errors[6] and "context is 512" in errors[16] and "empty" in errors[17]
    repaired = run(predictor, WithLong(tmp_path), tmp_path / "out")
    assert repaired.counts["failed"] == 2 and repaired.counts["resumed"] == 13
    with pytest.raises(PictureError, match="picture 1"):
        run(predictor, ToyBenchmark(tmp_path, broken=[1]), tmp_path / "raise", bad_samples="raise")


def test_pictures_are_opened_when_they_are_due(predictor: Predictor, tmp_path: Path) -> None:
    benchmark = ToyBenchmark(tmp_path, pictures=120)
    opened: list[int] = []

    def stop(done: int, total: int) -> None:
        opened.append(len(benchmark.opened))

    run(predictor, benchmark, tmp_path, limit=120, batch_size=2, progress=stop, max_new_tokens=1)
    assert opened[0] <= 48 and opened[-1] == 120  # a window of 32 questions, and 8 pictures ahead


def test_the_cache_is_limited(predictor: Predictor, tmp_path: Path) -> None:
    benchmark = ToyBenchmark(tmp_path, pictures=20)
    opened: list[int] = []
    run(
        predictor,
        benchmark,
        tmp_path,
        limit=20,
        batch_size=4,
        cache_mb=0,  # one picture
        workers=1,
        progress=lambda done, total: opened.append(len(benchmark.opened) - done),
        max_new_tokens=1,
    )
    assert len(opened) == 20 and max(opened) <= 2


def test_frames(predictor: Predictor, tmp_path: Path) -> None:
    class Video(ToyBenchmark):
        def questions(self) -> list[Question]:
            def frames(count: int) -> Callable[[], list[Image.Image]]:
                return lambda: [self.open(n) for n in range(count)]

            return [Question(i, "what is it?", frames(2 + i), f"v{i}", f"v{i}", {}, 2) for i in range(2)]

    keys: list[str] = []

    class PerFrame:
        def look_up(self, question: Question, images: Sequence[Any] = ()) -> FoundBoxes:
            keys.extend(f"{question.box_key}#{i}" for i in range(len(images)))
            return FoundBoxes((make_box_record([[1, 2, 30, 30]]), NO_BOXES), {"with": 1, "without": 1})

        def describe(self) -> dict[str, Any]:
            return {"spec": "per frame"}

    result = run(predictor, Video(tmp_path), tmp_path, boxes=PerFrame())
    assert keys == ["v0#0", "v0#1"] and result.counts["answered"] == 1
    assert result.samples[0]["boxes"] == 1
    assert "3 pictures or frames were opened, not 2" in result.failures[0]["error"]


def test_damaged_and_foreign_files(predictor: Predictor, tmp_path: Path) -> None:
    run(predictor, ToyBenchmark(tmp_path), tmp_path, limit=3)
    folder = tmp_path / "toy"
    part = folder / "replies.part0.journal"
    wanted, content = final(tmp_path), part.read_text()
    part.write_text(content.replace('"id"', "oops", 1))
    assert run(predictor, ToyBenchmark(tmp_path), tmp_path, limit=3).counts["resumed"] == 2
    assert final(tmp_path) == wanted, "the damaged one was asked again"
    held = Replies(folder)
    held.append([{"n": 3, "id": 3, "text": "x", "truncated": False}])
    with pytest.raises(RuntimeError, match="another process is writing"):
        run(predictor, ToyBenchmark(tmp_path), tmp_path)
    held.close()
    (folder / "run.json").unlink()
    with pytest.raises(OtherRunError, match=r"holds replies but no run\.json"):
        run(predictor, ToyBenchmark(tmp_path), tmp_path)


def test_weights_tell_models_apart(predictor: Predictor, toy_paths: dict[str, str], tmp_path: Path) -> None:
    run(predictor, ToyBenchmark(tmp_path), tmp_path, limit=1, model_identity=None)
    other = Predictor(toy.build_model(toy_paths, seed=4), toy_paths["llm"], "vicuna", PROCESSOR)
    with pytest.raises(OtherRunError, match=r"model\.weights was"):
        run(other, ToyBenchmark(tmp_path), tmp_path, limit=1, model_identity=None)


def test_replies_about_other_frames_are_not_used_again(predictor: Predictor, tmp_path: Path) -> None:
    """A benchmark about videos shows as many frames as the model was trained with, or as it is told."""
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", frames=5)
    data = [tmp_path / "test_q.json", tmp_path / "test_a.json"]
    data[0].write_text(json.dumps([{"question_id": "v_0", "question": "what is there?", "video_name": "a"}]))
    data[1].write_text(json.dumps([{"answer": "man"}]))
    kind, trained = BENCHMARKS.get("MSVDQA"), predictor.front_end.picture_processor.video.frames
    result = run(predictor, kind(data), tmp_path / "out", max_new_tokens=2)
    assert result.counts["answered"] == 1 and result.identity["benchmark"]["frames"] == trained
    assert run(predictor, kind(data, frames=trained), tmp_path / "out", max_new_tokens=2).counts["answered"] == 1
    with pytest.raises(OtherRunError, match=rf"benchmark\.frames was {trained}, is 2"):
        run(predictor, kind(data, frames=2), tmp_path / "out", max_new_tokens=2)
