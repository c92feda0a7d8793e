"""Multiple-choice tables of VLMEvalKit's form (MMBench, CCBench, SEED, MMStar, AI2D, MMMU, ...) by several rules.

Metrics of every rule, as shares of 1:

- ``accuracy`` over all questions, also under the script's own name (``Average`` of MG-LLaVA, ``Overall`` of
  VLMEvalKit). Where the table has circular copies (index + k * 1,000,000) a question is right if all its rotations
  are, and ``circular`` is the same figure again.
- ``vanilla``: over base rows alone, whether or not there are copies; ``vanilla/NAME`` for groups.
- one for each l2-category and category by its name; VLMEvalKit's short names (``CP``, ``LR``, ...) beside them.
- ``SPLIT/NAME`` where the table has more than one split.
- HR-Bench (column ``cycle_category``): ``cycle/NAME`` for each cycle, and ``circular``, right in all cycles.
- CV-Bench (column ``source`` with ADE20K, COCO, Omni3D): ``source/NAME``, ``2D``, ``3D`` and ``CV-Bench``.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mg_llava.data.records.tables import Row, TablePictures, cell_or_none
from mg_llava.evaluation.asking import LETTER_REQUEST, picture_question
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import HUGGING_FACE, Release, published_table
from mg_llava.evaluation.scoring.choice_table import (
    LETTERS,
    Choice,
    ChoiceTable,
    choice_metrics,
    infer_choice,
    load_choice_table,
    options_of,
    reference_letter,
)
from mg_llava.evaluation.scoring.figures import mean
from mg_llava.evaluation.scoring.files import read_rows
from mg_llava.evaluation.scoring.joining import Joined, Lines, Rule, ScoreResult, join_predictions

CHINESE_LETTER_REQUEST = "请直接回答选项字母。"
_CHINESE = re.compile("[\u4e00-\u9fff]")
_SHORT_NAMES = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}
FIELDS = (("index", "question_id", "id"), ("prediction", "text"))
"""Keys of the id and of the reply on a prediction line."""
_RULES = "the paper does not say whether a server, ChatGPT or rules scored; compare with LLaVA-1.5 run the same way"
_CIRCULAR = "all rotations of a question must be right; the table of July 2023 has 4377 rows, later ones 4329"
_UPLOAD = "no answers: upload the predictions to the MMBench server"


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


def load_multiple_choice(paths: Sequence[Path]) -> ChoiceTable:
    """Read a table; raises ``ValueError`` as ``load_choice_table`` does."""
    return load_choice_table(paths, "MMMU" in paths[0].name)


def load_mmmu(paths: Sequence[Path]) -> ChoiceTable:
    """``load_multiple_choice`` with questions without options taken for open ones."""
    return load_choice_table(paths, open_questions=True)


def score_multiple_choice(table: ChoiceTable, predictions: Lines, **options: Any) -> ScoreResult:
    """Score by the rules ``reference`` (MG-LLaVA) and ``vlmevalkit`` (exact matching of June 2024)."""
    joined = join_predictions([row.id for row in table.rows], predictions, *FIELDS)
    warnings = [*table.warnings]
    answered = sum(row.answer is not None for row in table.rows)
    extra: dict[str, Any] = {"n_questions": len(table.groups)}
    if not answered:
        warnings.append(
            f"{table.path} has no answers (a test split): nothing is scored; the benchmark's server takes the table "
            "with a column 'prediction', here under 'submission'"
        )
        return joined.result({}, warnings, **extra, submission=_submission(table, joined))
    if answered < len(table.rows):
        warnings.append(f"{len(table.rows) - answered} of {len(table.rows)} rows have no answer and count as wrong")
    rules = {
        "reference": _rule(table, joined, _read_reference, {}, "Average"),
        "vlmevalkit": _rule(table, joined, _read_vlmevalkit, _SHORT_NAMES, "Overall"),
    }
    return joined.result(rules, warnings, **extra)


def _read_reference(table: ChoiceTable, row: Choice, reply: str) -> tuple[str, str | None]:
    return reference_letter(reply), row.answer


def _read_vlmevalkit(table: ChoiceTable, row: Choice, reply: str) -> tuple[str, str | None]:
    """Letter of the reply and right letter; an open question of MMMU has its answer as A beside ``Other Answers``."""
    options, answer = dict(row.options), row.answer
    if table.open_questions:
        if "A" not in options:
            options = {**options, "A": answer or "", "B": "Other Answers"}
        answer = answer if answer in tuple(LETTERS) else "A"
    return infer_choice(reply, dict(sorted(options.items()))), answer


def _rule(
    table: ChoiceTable,
    joined: Joined,
    read: Callable[[ChoiceTable, Choice, str], tuple[str, str | None]],
    short_names: Mapping[str, str],
    title: str,
) -> Rule:
    """Metrics and samples of a rule that reads one letter out of each reply."""
    read_rows: dict[str, dict[str, Any]] = {}
    for row, text, line in joined.beside(table.rows):
        parsed, answer = read(table, row, text) if line is not None else ("", row.answer)
        right = float(line is not None and row.answer is not None and parsed == answer)
        read_rows[row.key] = {"id": row.id, "score": right, "parsed": parsed, "answer": answer}
    samples: list[dict[str, Any]] = []
    vanilla: dict[str, float] = {}
    strict: dict[str, float] = {}
    for key, group in table.groups.items():
        base, *rotations = (read_rows[row.key] for row in group)
        vanilla[key], strict[key] = base["score"], min(one["score"] for one in (base, *rotations))
        groups = {name: group[0].cell(name) for name in ("category", "l2-category") if name in group[0].row}
        sample = {**base, "score": strict[key], "vanilla": vanilla[key], **groups}
        samples.append({**sample, "rotations": rotations} if rotations else sample)
    return {title: mean(strict.values()), **choice_metrics(table, strict, vanilla, short_names, title)}, samples


def _submission(table: ChoiceTable, joined: Joined) -> list[dict[str, Any]]:
    """The rows that MMBench's server takes: the table without pictures, with the replies."""
    rows = []
    for row, text, _ in joined.beside(table.rows):
        cells = {name: value for name, value in row.row.items() if name not in ("image", "image_path")}
        rows.append({**cells, "index": row.id, "prediction": text})
    return rows


@BENCHMARKS.register
class MultipleChoice(Benchmark):
    """Any table with ``index``, ``question``, options ``A``, ``B``, ... and ``answer``; arguments as of ``Benchmark``.

    Prompts: ``reference`` is MG-LLaVA's (and LLaVA's), ``vlmevalkit`` that tool kit's.
    """

    scorer = "multiple_choice"
    form = 'a TSV of VLMEvalKit form; lines {"index", "prediction"}'
    load, rate = staticmethod(load_multiple_choice), staticmethod(score_multiple_choice)
    prompts = ("reference", "vlmevalkit")

    def questions(self) -> Sequence[Question]:
        """All rows, circular copies included."""
        rows, _ = read_rows(self.data[0], "question", "A", "B")
        pictures = TablePictures(rows, self.image_folder, str(self.data[0]))
        return [self._question(row, pictures) for row in rows]

    def _question(self, row: Row, pictures: TablePictures) -> Question:
        text = reference_prompt(row) if self.prompt == "reference" else vlmevalkit_prompt(row)
        return picture_question(row, text, pictures)


@BENCHMARKS.register
class MMBench(MultipleChoice):
    """MMBench dev and test, English and Chinese, with or without circular copies."""

    scorer = "mmbench"
    releases = (
        published_table("mmbench_dev_en", "MMBench_DEV_EN", "MMB-dev", f"{_CIRCULAR}; {_RULES}"),
        published_table("mmbench_test_en", "MMBench_TEST_EN", "MMB-test", _UPLOAD),
        published_table("mmbench_dev_cn", "MMBench_DEV_CN", caution=_CIRCULAR),
        published_table("mmbench_test_cn", "MMBench_TEST_CN", caution=_UPLOAD),
    )


def _table(name: str, scorer: str, about: str, *releases: Release, **settings: Any) -> None:
    """Register a class of tables that has its data sets alone, and perhaps another way to load them, of its own."""
    own = {"__doc__": about, "__module__": __name__, "scorer": scorer, "releases": releases, **settings}
    BENCHMARKS.register(type(name, (MultipleChoice,), own))


_table("CCBench", "ccbench", "CCBench: Chinese culture.", published_table("ccbench", "CCBench", caution="circular"))
_table(
    *("SEEDImage", "seed_image", "The picture questions of SEED-Bench as a table."),
    published_table("seed_image", "SEEDBench_IMG", "SEED-I", "14,233 questions"),
)
_table(
    *("ScienceQAImage", "scienceqa_image", "The questions of ScienceQA that have a picture, as a table."),
    published_table("scienceqa_image", "ScienceQA_TEST", "SQA-I", "the 2017 questions with a picture"),
)
_table(
    *("AI2D", "ai2d", "AI2D: diagrams, whose options are often their labels."),
    published_table("ai2d", "AI2D_TEST", "AI2D", "labels in the picture are masked; AI2D_TEST_NO_MASK is easier"),
    published_table("ai2d_no_mask", "AI2D_TEST_NO_MASK", caution="another set than ai2d"),
)
_table(
    *("MMMU", "mmmu", "MMMU: several pictures, options beyond D, and open questions."),
    published_table("mmmu_val", "MMMU_DEV_VAL", caution="several pictures; more than four options"),
    load=staticmethod(load_mmmu),
)
_table(
    *("VStar", "vstar", "V*: small objects in large pictures."),
    published_table("vstar", "VStarBench", get=f"{HUGGING_FACE}xjtupanda/VStar_Bench/resolve/main/VStarBench.tsv"),
)
_HR = f"{HUGGING_FACE}DreamMr/HR-Bench: hr_bench_%s.tsv as HRBench%s.tsv"
_table(
    *("HRBench", "hrbench", "HR-Bench: pictures of 4K and 8K, each question in four rotations of its options."),
    published_table("hrbench_4k", "HRBench4K", get=_HR % ("4k", "4K")),
    published_table("hrbench_8k", "HRBench8K", get=_HR % ("8k", "8K")),
)
_table(
    *("CVBench", "cv_bench", "CV-Bench, 2D and 3D."),
    published_table("cv_bench_2d", "CV-Bench-2D"),
    published_table("cv_bench_3d", "CV-Bench-3D"),
)
_table(
    *("MMERealWorld", "mme_realworld", "MME-RealWorld: five options, large pictures."),
    published_table("mme_realworld", "MME-RealWorld", get=f"{HUGGING_FACE}yifanzhang114/MME-RealWorld-Base64: 33 GB"),
)
_table(
    *("BLINK", "blink", "BLINK: several pictures a question."),
    published_table("blink", "BLINK", caution="several pictures a question"),
)
