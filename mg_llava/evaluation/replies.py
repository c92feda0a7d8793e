"""Replies on disk: appended batch by batch, by each process to a file of its own, and read back by the next run.

A folder holds ``run.json`` (what the replies depend on), ``replies.part0.journal``, ``replies.part1.journal``, ... (a
line for each reply or failure) and, when all is answered, ``predictions.jsonl`` (the benchmark's own form).
"""

import fcntl
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from mg_llava.evaluation.benchmark import Prediction, Question
from mg_llava.work.atomic import write_json, write_text
from mg_llava.work.journal import Journal, read_journal
from mg_llava.work.json_text import load_object

ReplyLine = dict[str, Any]
"""``n`` (number of the question), ``id`` and either ``error`` or the facts of an answer; see :func:`line_of`."""

RUN_FILE = "run.json"
FINAL_FILE = "predictions.jsonl"
_FORMAT = 2
_ABOUT = "about"


class OtherRunError(ValueError):
    """A folder holds replies of another model, prompt, generation or box source."""


class Replies:
    """The replies of one benchmark in one folder; a process appends to the part of its number alone.

    Attributes:
        folder: The folder.
        resumed: Number of questions that an earlier run had answered.
        seconds: Of this run's inference.
    """

    def __init__(self, folder: str | Path, process: int = 0) -> None:
        self.folder = Path(folder)
        self.part = self.folder / f"replies.part{process}.journal"
        self.resumed, self.seconds = 0, 0.0
        self._journal = Journal(self.part)
        self._lock: IO[bytes] | None = None

    def prepare(
        self, identity: Mapping[str, Any], fresh: bool = False, about: Mapping[str, Any] | None = None
    ) -> None:
        """Make the folder ready for a run, or check that the replies in it are of the same run.

        Args:
            identity: All that replies depend on; plain values.
            fresh: Throw away what is there.
            about: Further facts of the run, such as names of files.

        Raises:
            OtherRunError: The replies in the folder depend on something else; the message says on what.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / RUN_FILE
        if fresh:
            for old in [path, self.folder / FINAL_FILE, *self._parts()]:
                old.unlink(missing_ok=True)
        wanted = json.loads(json.dumps({"format": _FORMAT, **identity}))
        if path.is_file():
            found = self._run()
            found.pop(_ABOUT, None)
            self._compare(_flat(found), _flat(wanted))
        elif self._parts():
            raise OtherRunError(
                f"{self.folder} holds replies but no {RUN_FILE} that says of which run; use another folder, or "
                "--fresh to throw them away"
            )
        write_json(path, {**wanted, _ABOUT: dict(about or {})})

    @property
    def identity(self) -> dict[str, Any]:
        """All that the replies depend on."""
        return {key: value for key, value in self._run().items() if key not in (_ABOUT, "format")}

    @property
    def about(self) -> dict[str, Any]:
        """Further facts of the run."""
        return self._run().get(_ABOUT, {})

    def _run(self) -> dict[str, Any]:
        path = self.folder / RUN_FILE
        try:
            return load_object(path)
        except ValueError as error:
            raise OtherRunError(f"{path} is damaged ({error}); use another folder (--out), or --fresh") from error

    def _compare(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        other = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if other:
            changes = "; ".join(f"{key} was {_short(before.get(key))}, is {_short(now.get(key))}" for key in other)
            raise OtherRunError(
                f"{self.folder} holds replies of another run: {changes}. Use another folder (--out), or --fresh to "
                "throw the replies away"
            )

    def read(self, asked: Sequence[Question]) -> tuple[dict[int, ReplyLine], list[ReplyLine]]:
        """Replies to the questions that are asked, by their number, and failures of the others.

        Raises:
            ValueError: A reply is to another question than the data has at its place.
        """
        lines = {
            record.value["n"]: record.value
            for part in self._parts()
            for record in read_journal(part)
            if record.value["n"] < len(asked)
        }
        for n, line in lines.items():
            if str(line["id"]) != str(asked[n].id):
                raise ValueError(
                    f"{self.folder}: reply {n} is to question {line['id']!r}, the data has {asked[n].id!r} there; "
                    "use another folder (--out), or --fresh"
                )
        replies = {n: lines[n] for n in sorted(lines) if "text" in lines[n]}
        return replies, [lines[n] for n in sorted(lines) if n not in replies]

    def append(self, lines: Iterable[ReplyLine]) -> None:
        """Add replies and failures; they are on the disk when this returns.

        Raises:
            RuntimeError: Another process appends to the same part.
        """
        if self._lock is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = self.part.open("ab")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self.close()
                raise RuntimeError(
                    f"another process is writing {self.part}; wait for it, or use another folder (--out)"
                ) from error
        self._journal.append(lines)

    def finish(self, predictions: Iterable[Prediction]) -> None:
        """Write the file with all predictions in the benchmark's form and order."""
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in predictions)
        write_text(self.folder / FINAL_FILE, "".join(lines))

    def close(self) -> None:
        """Close the part."""
        self._journal.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("replies.part*.journal"))


def line_of(n: int, question: Question, answer: Any, source: Mapping[str, int] | None = None) -> ReplyLine:
    """The facts to keep of an ``Answer`` to question number ``n``, or of the exception in its place.

    Returns:
        ``n``, ``id``, and ``error`` or ``text`` and ``truncated``; ``source``, counts of its boxes; of the box tokens
        of its pictures their number ``boxes``, mean ``confidence`` and mean ``size`` (square root of the share of the
        picture).
    """
    if isinstance(answer, Exception):
        return {"n": n, "id": question.id, "error": str(answer)}
    line: ReplyLine = {"n": n, "id": question.id, "text": answer.text, "truncated": answer.truncated}
    if source is not None:
        line["source"] = dict(source)
    if answer.pictures:
        line["boxes"] = len(answer.boxes)
    if line.get("boxes"):
        line["confidence"] = round(float(np.mean([score for seen in answer.pictures for score in seen.scores])), 4)
        line["size"] = round(float(np.concatenate([_sizes(seen) for seen in answer.pictures]).mean()), 4)
    return line


def _sizes(seen: Any) -> np.ndarray:
    """(n,) square root of the share of the picture that each box covers."""
    sides = (seen.boxes[:, 2:] - seen.boxes[:, :2]).clip(min=0)
    return np.sqrt(sides[:, 0] * sides[:, 1] / (seen.canvas.width * seen.canvas.height))


def _flat(node: Any, name: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    if not isinstance(node, Mapping):
        return {name: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{name}.{key}" if name else str(key))
    return flat


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
