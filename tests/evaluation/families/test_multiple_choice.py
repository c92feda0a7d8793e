"""Multiple choice: how replies are read, circular questions, groups, and tables with something wrong."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_llava.data.records.tables import read_table
from mg_llava.evaluation.families.mmstar import mmstar_right
from mg_llava.evaluation.families.multiple_choice import MultipleChoice
from mg_llava.evaluation.score import find_scorer, score_predictions
from mg_llava.evaluation.scoring.choice_table import infer_choice, options_of, reference_letter
from tests.evaluation.benchmark_files import write_table

ANIMALS = {"A": "cat", "B": "Dog", "C": "red car", "D": "猫"}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("(B)", "B"),
        ("B.", "B"),
        ("The answer is B because", "B"),
        ("Answer: B", "A"),  # of "Answer"
        ("Because of C", "B"),
        ("b", ""),
        ("A dog", "A"),
        (" Yes, there is.", ""),
        ("", ""),
        ("é ü 猫", ""),
        ("答案是C", "C"),
        ("E", ""),
        ("E or C", "C"),
        ("BD", "BD"),
        ("CAT", "CA"),
    ],
)
def test_reference_takes_the_first_run_of_capitals(reply: str, letter: str) -> None:
    assert reference_letter(reply) == letter


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("(B)", "B"),
        ("B.", "B"),
        ("The answer is B because", "B"),
        ("Answer: B", "B"),
        ("b", ""),
        ("A dog", "A"),  # the letter comes before the text
        ("A big one over there", "A"),  # more than three words: left open only where the log is verbose
        ("a dog", "B"),  # no letter, so the text
        (" Yes, there is.", ""),
        ("", ""),
        ("A or B", ""),
        ("cat and dog", ""),
        ("The RED CAR!", "C"),
        ("这是猫", "D"),
        ("答案是B", ""),  # no word of its own
        ("答案是 B 。", "B"),
        ("E", ""),
        ("**C**", "C"),
        ('"C"', ""),
        ("Z", "Z"),
        ("Z or B", "B"),
        ("Cannot determine the answer from B", "Z"),
        ("Failed to obtain answer via API. B", ""),
        ("Failed to obtain answer via API: cat", "A"),  # the text is still looked at
        ("B\u3000", "B"),
        ("B\u200b", ""),
    ],
)
def test_vlmevalkit_takes_a_unique_letter_else_a_unique_text(reply: str, letter: str) -> None:
    assert infer_choice(reply, ANIMALS) == letter


def test_vlmevalkit_knows_options_beyond_d() -> None:
    options = dict(zip("ABCDEFG", ("one", "two", "three", "four", "five", "six", "seven"), strict=True))
    assert infer_choice("(G)", options) == "G"
    assert infer_choice("it is five", options) == "E"
    assert infer_choice("H", options) == ""


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("(B)", "B", True),
        ("B.", "B", True),
        ("b", "B", True),
        ("because", "B", True),  # as lenient as the script
        ("A dog", "A", True),
        ("  a", "A", True),
        ("Option C", "C", True),
        ("The answer is D because", "D", True),
        ("The answer is: D", "D", False),
        ("Answer: B", "B", False),
        ("Answer: B", "A", True),
        ("", "A", False),
        ("(", "A", False),
        ("option ", "O", True),
        ("option", "B", False),
        ("选B", "B", False),
    ],
)
def test_mmstar_looks_at_the_beginning(reply: str, answer: str, right: bool) -> None:
    assert mmstar_right(reply, answer) is right


@given(st.text(), st.dictionaries(st.sampled_from("ABCDEFG"), st.text(min_size=1), min_size=1))
def test_rules_take_any_text(reply: str, options: dict[str, str]) -> None:
    assert set(reference_letter(reply)) <= set("ABCD")
    assert infer_choice(reply, options) in {"", "Z", *options}
    mmstar_right(reply, "A")


@pytest.fixture
def circular(tmp_path: Path) -> Path:
    """Question 1 in two rotations, question 2 in three, question 3 without copies."""
    rows = [
        {"index": 1, "question": "?", "A": "cat", "B": "dog", "answer": "A", "category": "x", "l2-category": "p"},
        {"index": 1_000_001, "question": "?", "A": "dog", "B": "cat", "answer": "B", "category": "x"},
        {"index": 2, "question": "?", "A": "one", "B": "two", "C": "three", "answer": "C", "category": "y"},
        {"index": 1_000_002, "question": "?", "A": "three", "B": "one", "C": "two", "answer": "A", "category": "y"},
        {"index": 2_000_002, "question": "?", "A": "two", "B": "three", "C": "one", "answer": "B", "category": "y"},
        {"index": 3, "question": "?", "A": "u", "B": "v", "answer": "B", "category": "y"},
    ]
    groups = {1: "p", 2: "q", 3: "q"}
    for row in rows:
        row |= {"l2-category": groups[row["index"] % 1_000_000], "image": "i" * 100}
    return write_table(tmp_path / "MMBench_DEV_EN.tsv", rows)


def score(path: Path, replies: dict, name: str = "mmbench") -> dict:
    return score_predictions(name, [path], [{"index": k, "prediction": v} for k, v in replies.items()])


def test_circular_questions_need_all_rotations(circular: Path) -> None:
    replies = {1: "A", 1_000_001: "(B)", 2: "C", 1_000_002: "A.", 2_000_002: "A", 3: "B"}
    result = score(circular, replies)
    assert (result["n"], result["n_questions"], result["n_missing"], result["n_unknown"]) == (6, 3, 0, 0)
    for rule, title in (("reference", "Average"), ("vlmevalkit", "Overall")):
        metrics = result["rules"][rule]["metrics"]
        assert metrics[title] == metrics["accuracy"] == metrics["circular"] == pytest.approx(2 / 3)
        assert metrics["vanilla"] == 1.0
        assert (metrics["x"], metrics["y"], metrics["p"], metrics["q"]) == (1.0, 0.5, 1.0, 0.5)
        assert metrics["vanilla/y"] == 1.0
    samples = result["rules"]["reference"]["per_sample"]
    assert [(sample["id"], sample["score"], sample["vanilla"]) for sample in samples] == [
        (1, 1, 1),
        (2, 0, 1),
        (3, 1, 1),
    ]
    assert [part["id"] for part in samples[1]["rotations"]] == [1_000_002, 2_000_002]


def test_rules_differ_on_free_replies(circular: Path) -> None:
    replies = {1: "Answer: B", 1_000_001: "Answer: B", 2: "the three", 1_000_002: "Three", 2_000_002: "three!", 3: "v"}
    rules = score(circular, replies)["rules"]
    assert rules["reference"]["metrics"]["Average"] == 0.0
    assert rules["reference"]["metrics"]["vanilla"] == pytest.approx(1 / 3)  # "Answer: B" is read as A
    assert rules["vlmevalkit"]["metrics"]["Overall"] == pytest.approx(2 / 3)


def test_missing_unknown_and_repeated_predictions_are_counted(circular: Path) -> None:
    lines = [
        {"index": 1, "prediction": "B"},
        {"index": "1", "prediction": "A"},
        {"index": 1_000_001.0, "prediction": "B"},
        {"index": 77, "prediction": "A"},
        {"index": 3, "prediction": None},
    ]
    result = score_predictions("mmbench", [circular], lines)
    assert (result["n_missing"], result["n_unknown"], result["n_duplicates"]) == (3, 1, 1)
    assert result["rules"]["reference"]["metrics"]["Average"] == pytest.approx(1 / 3)
    assert any("77" in warning for warning in result["warnings"])


def test_no_predictions_at_all_are_no_silent_zero(circular: Path) -> None:
    result = score(circular, {})
    assert result["n_missing"] == 6
    assert result["rules"]["vlmevalkit"]["metrics"]["Overall"] == 0.0
    assert any("no prediction" in warning for warning in result["warnings"])


def test_a_test_split_gives_what_the_server_takes(tmp_path: Path) -> None:
    rows = [{"index": n, "question": "?", "image": "i" * 100, "A": "x", "B": "y"} for n in (4, 5)]
    result = score(write_table(tmp_path / "MMBench_TEST_EN.tsv", rows), {5: "B"})
    assert result["rules"] == {}
    assert any("no answers" in warning for warning in result["warnings"])
    expected = {"question": "?", "A": "x", "B": "y"}
    assert result["submission"] == [
        {"index": 4, **expected, "prediction": ""},
        {"index": 5, **expected, "prediction": "B"},
    ]


def test_some_missing_answers_are_wrong_and_said(tmp_path: Path) -> None:
    rows = [{"index": 1, "question": "?", "A": "x", "B": "y", "answer": "A"}, {"index": 2, "question": "?", "A": "x"}]
    result = score(write_table(tmp_path / "t.tsv", rows), {1: "A", 2: ""})
    assert result["rules"]["reference"]["metrics"]["Average"] == 0.5
    assert any("1 of 2 rows have no answer" in warning for warning in result["warnings"])


def test_repeated_indices_are_left_out_and_said(tmp_path: Path) -> None:
    row = {"index": 1, "question": "?", "A": "x", "B": "y", "answer": "A"}
    path = write_table(tmp_path / "t.tsv", [row, {**row, "answer": "B"}, {**row, "index": 2}])
    result = score(path, {1: "A", 2: "A"})
    assert (result["n"], result["rules"]["reference"]["metrics"]["Average"]) == (2, 1.0)
    assert any("1 in row 2" in warning for warning in result["warnings"])


def test_circular_rows_without_base_row_are_said(tmp_path: Path) -> None:
    rows = [{"index": n, "question": "?", "A": "x", "B": "y", "answer": "A"} for n in (1, 1_000_002)]
    result = score(write_table(tmp_path / "t.tsv", rows), {1: "A", 1_000_002: "B"})
    assert result["rules"]["reference"]["metrics"]["Average"] == 1.0
    assert any("no base row" in warning for warning in result["warnings"])


def test_groups_use_vlmevalkits_short_names_and_splits(tmp_path: Path) -> None:
    rows = [
        {
            "index": 1,
            "question": "?",
            "A": "x",
            "B": "y",
            "answer": "A",
            "category": "logic_reasoning",
            "split": "dev",
        },
        {
            "index": 2,
            "question": "?",
            "A": "x",
            "B": "y",
            "answer": "A",
            "category": "logic_reasoning",
            "split": "val",
        },
    ]
    rules = score(write_table(tmp_path / "t.tsv", rows), {1: "A", 2: "B"})["rules"]
    assert rules["vlmevalkit"]["metrics"]["LR"] == rules["vlmevalkit"]["metrics"]["logic_reasoning"] == 0.5
    assert "LR" not in rules["reference"]["metrics"]
    assert (rules["reference"]["metrics"]["dev/Average"], rules["reference"]["metrics"]["val/Average"]) == (1.0, 0.0)


def test_cells_are_read_as_pandas_reads_them(tmp_path: Path) -> None:
    """VLMEvalKit goes through a data frame: ``None`` is no option, and a column of numbers with gaps holds floats."""
    rows = [
        {"index": 1, "question": "?", "A": "None", "B": "y", "C": "3", "answer": "B"},
        {"index": 2, "question": "?", "A": "x", "B": "z", "C": "", "answer": "A"},
    ]
    path = write_table(tmp_path / "t.tsv", rows)
    assert score(path, {1: "none but y", 2: "x"})["rules"]["vlmevalkit"]["metrics"]["Overall"] == 1.0
    assert score(path, {1: "3", 2: "x"})["rules"]["vlmevalkit"]["per_sample"][0]["parsed"] == ""
    assert score(path, {1: "3.0", 2: "x"})["rules"]["vlmevalkit"]["per_sample"][0]["parsed"] == "C"


def test_open_questions_of_mmmu(tmp_path: Path) -> None:
    rows = [
        {"index": 1, "question": "?", "A": "", "B": "", "answer": "3.5"},
        {"index": 2, "question": "?", "A": "x", "B": "y", "E": "z", "answer": "E"},
    ]
    rules = score(write_table(tmp_path / "t.tsv", rows), {1: "It is 3.5 m", 2: "(E)"}, "mmmu")["rules"]
    assert rules["vlmevalkit"]["metrics"]["Overall"] == 1.0
    assert rules["reference"]["metrics"]["Average"] == 0.0  # E can never be read, nor an open answer


def test_mmstar_divides_by_its_full_size(tmp_path: Path) -> None:
    row = {"question": "?", "A": "x", "B": "y", "category": "math"}
    rows = [
        {"index": 1, **row, "answer": "A", "l2_category": "geometry", "bench": "m"},
        {"index": 2, **row, "answer": "B", "l2_category": "geometry", "bench": "m"},
    ]
    result = score(write_table(tmp_path / "MMStar.tsv", rows), {1: "a dog", 2: "c"}, "mmstar")
    metrics = result["rules"]["official"]["metrics"]
    assert list(result["rules"]) == ["official", "reference", "vlmevalkit"]
    assert metrics["final score"] == pytest.approx(1 / 1500)
    assert metrics["math"] == pytest.approx(1 / 250)
    assert (metrics["math(geometry)"], metrics["accuracy"]) == (0.5, 0.5)
    assert any("1500" in warning for warning in result["warnings"])


def test_hrbench_cycles(tmp_path: Path) -> None:
    rows = []
    for cycle in range(2):
        for number in range(2):
            options = {"A": "x", "B": "y"} if cycle == 0 else {"A": "y", "B": "x"}
            category = ("single", "cross")[number]
            row = {"index": 2 * cycle + number, "question": f"q{number}", **options, "answer": "AB"[cycle]}
            rows.append({**row, "category": category, "cycle_category": f"cycle{cycle}"})
    metrics = score(write_table(tmp_path / "t.tsv", rows), {0: "A", 1: "A", 2: "B", 3: "A"}, "hrbench_4k")["rules"][
        "reference"
    ]["metrics"]
    assert (metrics["cycle0/all"], metrics["cycle1/all"], metrics["Average/all"]) == (1.0, 0.5, 0.75)
    assert (metrics["Average/single"], metrics["Average/cross"]) == (1.0, 0.5)
    assert metrics["circular"] == 0.5


def test_cv_bench_averages_its_sources(tmp_path: Path) -> None:
    sources = ["ADE20K", "ADE20K", "COCO", "Omni3D"]
    rows = [
        {"index": n, "question": "?", "A": "x", "B": "y", "answer": "(A)", "source": source}
        for n, source in enumerate(sources)
    ]
    metrics = score(write_table(tmp_path / "t.tsv", rows), {0: "A", 1: "B", 2: "A", 3: "B"}, "CV-Bench")["rules"][
        "vlmevalkit"
    ]["metrics"]
    assert (metrics["2D"], metrics["3D"], metrics["CV-Bench"], metrics["accuracy"]) == (0.75, 0.0, 0.375, 0.5)


def test_any_table_with_options_is_scored(tmp_path: Path) -> None:
    path = write_table(tmp_path / "own.tsv", [{"index": "p_1", "question": "?", "A": "x", "B": "y", "answer": "B"}])
    result = score_predictions("our_own_set", [path], [{"index": "p_1", "prediction": "B"}])
    assert result["benchmark"] == "our_own_set"
    assert result["rules"]["reference"]["per_sample"][0]["id"] == "p_1"


@pytest.mark.parametrize(
    ("name", "scorer"),
    [
        ("MMBench_DEV_EN", "mmbench"),
        ("mmbench-test-cn", "mmbench"),
        ("mme_realworld", "mme_realworld"),
        ("MME", "mme"),
    ],
)
def test_names_are_found_with_a_split_behind(name: str, scorer: str) -> None:
    assert find_scorer(name).scorer == scorer


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="did you mean pope"):
        find_scorer("popo")


def test_a_table_without_options_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.tsv", [{"index": 1, "question": "?", "answer": "yes"}])
    with pytest.raises(ValueError, match=r"t\.tsv has no column 'A', 'B'"):
        score(path, {1: "A"})


@pytest.mark.parametrize(
    ("cells", "shown"),
    [
        ({"A": "None", "B": "Two", "answer": "A"}, "AB"),
        ({"A": "One", "B": "N/A", "C": "Two", "answer": "A"}, "ABC"),
        ({"A": "One", "B": "Two", "C": "null", "D": "", "answer": "A"}, "ABC"),
        ({"A": "One", "B": "Two", "C": "nan", "answer": "A"}, "AB"),  # a mark of the writer for an empty cell
        ({"A": "One", "B": "Two", "C": "NaN", "answer": "C"}, "ABC"),  # but it is the answer
        ({"A": "One", "B": "NA", "C": "", "D": "Two", "answer": "D"}, "ABD"),
    ],
)
def test_options_that_read_as_nothing_are_asked_and_said(cells: dict[str, str], shown: str, tmp_path: Path) -> None:
    table = write_table(tmp_path / "MMBench_X.tsv", [{"index": 7, "question": "How many?", **cells}])
    (row,) = read_table(table)
    assert "".join(options_of(row)) == shown
    (question,) = MultipleChoice(table).questions()
    for letter in shown:
        assert f"\n{letter}. {cells[letter]}\n" in question.text
    warnings = score_predictions("mmbench", [table], [{"index": 7, "prediction": "A"}])["warnings"]
    is_word = any(cells[letter] not in ("One", "Two") for letter in shown)
    assert any("options of" in warning and "7 " in warning for warning in warnings) == is_word
