"""Multiple-choice tables of VLMEvalKit's form: the picture, a question, lettered options, the letter as the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from mg_llava.data.records.tables import (
    Row,
    TablePictures,
    cell_or_none,
    plain_id,
    read_table,
    require_columns,
    unique_rows,
)
from mg_llava.evaluation.benchmark import Benchmark, Question
from mg_llava.evaluation.scorers.choice_rules import LETTERS
from mg_llava.evaluation.scorers.multiple_choice import CIRCULAR_STEP
from mg_llava.registry import BENCHMARKS
from mg_llava.tokens import IMAGE_PLACEHOLDER

LETTER_REQUEST = "Answer with the option's letter from the given choices directly."
CHINESE_LETTER_REQUEST = "请直接回答选项字母。"
_CHINESE = re.compile("[\u4e00-\u9fff]")


def options_of(row: Row) -> dict[str, str]:
    """Text of each option of a row by its letter; letters in between may be missing."""
    cells = ((letter, cell_or_none(row, letter)) for letter in LETTERS)
    return {letter: cell for letter, cell in cells if cell is not None}


def reference_prompt(row: Row) -> str:
    """MG-LLaVA's prompt; one Chinese character anywhere makes the request Chinese."""
    parts = [cell_or_none(row, "hint"), row["question"], *(f"{k}. {v}" for k, v in options_of(row).items())]
    text = "\n".join(part for part in parts if part is not None) + "\n"
    return text + (CHINESE_LETTER_REQUEST if _CHINESE.search(text) else LETTER_REQUEST)


def vlmevalkit_prompt(row: Row) -> str:
    """VLMEvalKit's default prompt."""
    hint, options = cell_or_none(row, "hint"), options_of(row)
    lines = [] if hint is None else [f"Hint: {hint}"]
    lines.append(f"Question: {row['question']}")
    if options:
        lines += ["Options:", *(f"{letter}. {text}" for letter, text in options.items())]
        lines.append("Please select the correct answer from the options above. ")
    return "\n".join(lines) + "\n"


def place_pictures(text: str, pictures: int) -> str:
    """Put placeholders for several pictures where the text says ``<image 1>``, ``<image 2>``, ...

    The text is left alone, so that the pictures come first, for a single one, or where it does not name each of them
    once and in order.
    """
    marks = re.findall(r"<image (\d+)>", text)
    if pictures < 2 or marks != [str(number) for number in range(1, pictures + 1)]:
        return text
    return re.sub(r"<image \d+>", IMAGE_PLACEHOLDER, text)


@BENCHMARKS.register_module()
class MultipleChoice(Benchmark):
    """Any table with ``index``, ``question``, options ``A``, ``B``, ... and ``answer``; arguments as of ``Benchmark``.

    Prompts: ``reference`` is MG-LLaVA's (and LLaVA's), ``vlmevalkit`` that tool kit's.
    """

    scorer: ClassVar[str] = "multiple_choice"
    prompts: ClassVar[tuple[str, ...]] = ("reference", "vlmevalkit")

    def questions(self) -> Sequence[Question]:
        """All rows, circular copies included."""
        path = self.data[0]
        rows, _ = unique_rows(path, require_columns(path, read_table(path), ("index", "question", "A", "B")))
        pictures = TablePictures(rows, self.image_folder, str(path))
        return [self._question(row, pictures) for row in rows]

    def _question(self, row: Row, pictures: TablePictures) -> Question:
        text = reference_prompt(row) if self.prompt == "reference" else vlmevalkit_prompt(row)
        return picture_question(row, text, pictures)


def picture_question(row: Row, text: str, pictures: TablePictures, **fields: Any) -> Question:
    """A question about the pictures of a table's row.

    The boxes are those of the row's index; a circular copy has those of its base row, whose picture it shows.
    """
    index, opener = plain_id(row["index"]), pictures.opener(row)
    if opener is None:
        return Question(index, text, fields=fields)
    count = pictures.count(row)
    return Question(
        index,
        place_pictures(text, count),
        opener,
        pictures.key(row),
        _box_key(row, index, pictures),
        fields,
        frames=count if count > 1 else None,
    )


def _box_key(row: Row, index: int | str, pictures: TablePictures) -> int | str:
    """The base row's index for a circular copy; a large index without base row, or of another picture, is its own."""
    if not isinstance(index, int) or index < CIRCULAR_STEP:
        return index
    base = pictures.row(index % CIRCULAR_STEP)
    return index if base is None or pictures.key(base) != pictures.key(row) else index % CIRCULAR_STEP


@BENCHMARKS.register_module()
class MMBench(MultipleChoice):
    """MMBench dev and test, English and Chinese, with or without circular copies."""

    scorer: ClassVar[str] = "mmbench"


@BENCHMARKS.register_module()
class CCBench(MultipleChoice):
    """CCBench: Chinese culture."""

    scorer: ClassVar[str] = "ccbench"


@BENCHMARKS.register_module()
class SEEDImage(MultipleChoice):
    """The picture questions of SEED-Bench as a table."""

    scorer: ClassVar[str] = "seed_image"


@BENCHMARKS.register_module()
class MMStar(MultipleChoice):
    """MMStar."""

    scorer: ClassVar[str] = "mmstar"


@BENCHMARKS.register_module()
class ScienceQAImage(MultipleChoice):
    """The questions of ScienceQA that have a picture, as a table."""

    scorer: ClassVar[str] = "scienceqa_image"


@BENCHMARKS.register_module()
class AI2D(MultipleChoice):
    """AI2D: diagrams, whose options are often their labels."""

    scorer: ClassVar[str] = "ai2d"


@BENCHMARKS.register_module()
class MMMU(MultipleChoice):
    """MMMU: several pictures, options beyond D, and open questions."""

    scorer: ClassVar[str] = "mmmu"


@BENCHMARKS.register_module()
class VStar(MultipleChoice):
    """V*: small objects in large pictures."""

    scorer: ClassVar[str] = "vstar"


@BENCHMARKS.register_module()
class HRBench(MultipleChoice):
    """HR-Bench: pictures of 4K and 8K, each question in four rotations of its options."""

    scorer: ClassVar[str] = "hrbench"


@BENCHMARKS.register_module()
class CVBench(MultipleChoice):
    """CV-Bench, 2D and 3D."""

    scorer: ClassVar[str] = "cv_bench"


@BENCHMARKS.register_module()
class MMERealWorld(MultipleChoice):
    """MME-RealWorld: five options, large pictures."""

    scorer: ClassVar[str] = "mme_realworld"


@BENCHMARKS.register_module()
class BLINK(MultipleChoice):
    """BLINK: several pictures a question."""

    scorer: ClassVar[str] = "blink"
