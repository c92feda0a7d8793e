"""Questions about short videos: MSVD-QA, MSRVTT-QA."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from mg_llava.data.pictures.video import VIDEO_SUFFIXES, read_frames
from mg_llava.evaluation.benchmark import Benchmark, Question
from mg_llava.evaluation.scorers.judge_replies import JudgedQuestion
from mg_llava.evaluation.scorers.video_qa import load_video_qa
from mg_llava.registry import BENCHMARKS


class _VideoQA(Benchmark):
    """Questions of ``test_q.json`` and ``test_a.json`` about videos in ``image_folder``, without any suffix.

    The videos' frames come first, then the question. ``tools/judge.py`` adds the judge's replies.

    Args:
        frames: Number of frames, sampled uniformly from the first to the last.
        **arguments: As of ``Benchmark``.
    """

    id_field: ClassVar[str] = "id"
    text_field: ClassVar[str] = "pred"
    headline: ClassVar[tuple[str, str]] = ("official", "accuracy")

    def __init__(self, *args: Any, frames: int = 8, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.frames = frames

    def questions(self) -> Sequence[Question]:
        """All questions; names of videos may come without their ending."""
        folder = self.image_folder or self.data[0].parent / "videos"
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        endings = {file.stem: file.name for file in files if file.suffix.lower() in VIDEO_SUFFIXES}
        return [self._question(question, folder, endings) for question in load_video_qa(self.data)]

    def _question(self, question: JudgedQuestion, folder: Path, endings: dict[str, str]) -> Question:
        name = question.image
        if Path(name).suffix.lower() not in VIDEO_SUFFIXES:
            name = endings.get(name, name)
        return Question(
            question.id,
            question.text,
            partial(read_frames, folder / name, self.frames, f"question {question.id}"),
            name,
            question.image,
            {"question": question.text, "answer": question.answer},
            frames=self.frames,
        )


@BENCHMARKS.register_module()
class MSVDQA(_VideoQA):
    """MSVD-QA."""

    scorer: ClassVar[str] = "msvd_qa"


@BENCHMARKS.register_module()
class MSRVTTQA(_VideoQA):
    """MSRVTT-QA."""

    scorer: ClassVar[str] = "msrvtt_qa"
