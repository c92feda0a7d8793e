"""Tables with pictures: what is read, what is refused and how, and where pictures come from."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mg_llava.data.pictures.files import PictureError
from mg_llava.data.records.tables import TablePictures, is_missing, read_header, read_table
from tests.evaluation.benchmark_files import picture_base64, write_table

RED, GREEN = (255, 0, 0), (0, 255, 0)


def test_cells_may_hold_anything(tmp_path: Path) -> None:
    rows = [
        {"index": "1", "image": "x" * 200_000, "question": 'A "quoted"\ttab\nand a line', "A": "é猫"},
        {"index": "2", "image": "1", "question": "  spaces  ", "A": ""},
    ]
    table = read_table(write_table(tmp_path / "t.tsv", rows))
    assert [dict(row) for row in table] == rows
    assert [(row.number, row.line) for row in table] == [(1, 2), (2, 4)]
    assert read_header(tmp_path / "t.tsv") == ["index", "image", "question", "A"]


@settings(max_examples=40)
@given(st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"))] * 2)))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]) -> None:
    rows = [{"index": first, "image": second + "x" * 300} for first, second in cells]
    path = tmp_path_factory.mktemp("t") / "t.tsv"
    write_table(path, [{"index": "0", "image": "0"}, *rows])
    assert [dict(row) for row in read_table(path)][1:] == rows


def test_windows_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(b"\xef\xbb\xbfindex\timage\r\n1\t" + b"y" * 300 + b"\r\n")
    (row,) = read_table(path)
    assert (row["index"], len(row["image"])) == ("1", 300)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("index\tA\tB\n1\tx\ty\n2\tx", r"row 2 \(line 3\) has 2 cells, the header has 3; is the file cut off"),
        ("index\tA\n1\tx\ty\n", r"row 1 \(line 2\) has 3 cells, the header has 2"),
        ('index\tA\n1\t"x\ny', "inside of the quoted cell of a row that starts in line 2"),
        ("index\tA\tA\n", "'A' more than once"),
    ],
)
def test_broken_tables_name_file_and_row(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "broken.tsv"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"broken.tsv.*{message}"):
        read_table(path)


def test_a_table_cut_off_anywhere_is_refused_or_shorter(tmp_path: Path) -> None:
    rows = [{"index": str(n), "image": picture_base64(), "question": "what?", "answer": "A"} for n in range(3)]
    whole = write_table(tmp_path / "t.tsv", rows).read_bytes()
    cut = tmp_path / "cut.tsv"
    refused = 0
    for size in range(30, len(whole), 37):
        cut.write_bytes(whole[:size])
        try:
            assert len(read_table(cut)) < 3
        except ValueError as error:
            assert "cut.tsv" in str(error)
            refused += 1
    assert refused > 5


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_bytes(b"index\tA\n1\t\xff\xfe\n")
    with pytest.raises(ValueError, match="line 2 is not UTF-8"):
        read_table(tmp_path / "t.tsv")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tsv"):
        read_table(tmp_path / "nowhere.tsv")


@pytest.mark.parametrize("cell", ["", "nan", "NaN", "NA", "N/A", "None", "null", None])
def test_missing_as_in_pandas(cell: str | None) -> None:
    assert is_missing(cell)
    assert not is_missing("none")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [
        {"index": "5", "image": picture_base64(RED)},
        {"index": "1000005", "image": "5"},
        {"index": "2000005", "image": "1000005"},
        {"index": "6", "image": picture_base64(GREEN)},
        {"index": "7", "image": picture_base64(RED)},
        {"index": "8", "image": "99"},
        {"index": "9", "image": picture_base64(RED, (400, 300))[:400]},
        {"index": "10", "image": "!" * 90},
        {"index": "11", "image": ""},
        {"index": "12", "image": "13"},
        {"index": "13", "image": "12"},
        {"index": "14", "image": str([picture_base64(RED), picture_base64(GREEN)])},
    ]
    return write_table(tmp_path / "pictures.tsv", rows)


def test_pictures_and_references(table: Path) -> None:
    rows = read_table(table)
    pictures = TablePictures(rows, owner="pictures.tsv")
    by_index = {row["index"]: row for row in rows}

    def color(index: str) -> tuple[int, int, int]:
        image = pictures.opener(by_index[index])()
        assert image.size == (20, 12)
        return image.getpixel((0, 0))

    assert [color(index) for index in ("5", "1000005", "2000005", "6")] == [RED, RED, RED, GREEN]
    keys = {index: pictures.key(row) for index, row in by_index.items()}
    assert keys["5"] == keys["1000005"] == keys["2000005"] == keys["7"] != keys["6"]
    assert pictures.opener(by_index["11"]) is None
    several = pictures.opener(by_index["14"])()
    assert [image.getpixel((0, 0)) for image in several] == [RED, GREEN]
    assert (pictures.count(by_index["14"]), pictures.count(by_index["5"])) == (2, 1)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("8", "points at row '99', which the table does not have"),
        ("9", "cannot be decoded"),
        ("10", "is not base64"),
        ("12", "in a circle"),
    ],
)
def test_bad_pictures_name_table_and_row(table: Path, index: str, message: str) -> None:
    rows = read_table(table)
    row = next(row for row in rows if row["index"] == index)
    with pytest.raises(PictureError, match=f"pictures.tsv, index {index}.*{message}"):
        TablePictures(rows, owner="pictures.tsv").opener(row)()  # type: ignore[misc]


def test_pictures_in_a_folder(tmp_path: Path) -> None:
    Image.new("RGB", (7, 7), GREEN).save(tmp_path / "a.png")
    rows = read_table(
        write_table(
            tmp_path / "t.tsv",
            [
                {"index": "1", "image": picture_base64(RED), "image_path": "a.png"},
                {"index": "2", "image": picture_base64(RED), "image_path": "not_there.png"},
                {"index": "3", "image": "", "image_path": "not_there.png"},
            ],
        )
    )
    pictures = TablePictures(rows, tmp_path)
    assert pictures.opener(rows[0])().size == (7, 7)  # the folder comes first
    assert pictures.opener(rows[1])().size == (20, 12)
    with pytest.raises(PictureError, match=r"not_there\.png"):
        pictures.opener(rows[2])()
    with pytest.raises(PictureError, match="give image_folder"):
        TablePictures(rows).opener(rows[2])()
