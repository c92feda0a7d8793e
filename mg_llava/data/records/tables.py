"""Benchmark tables (TSV, CSV) with pictures in their cells: reading them, and opening the pictures when asked for.

Tables of several gigabytes stay on disk: a row keeps the place of its picture cell in the file, not its content.
"""

import ast
import base64
import binascii
import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mg_llava.data.records.delimited import delimiter_of, records

if TYPE_CHECKING:
    from PIL import Image

    Opener = Callable[[], Image.Image | list[Image.Image]]

PICTURE_COLUMN = "image"
PATH_COLUMN = "image_path"
_KEPT_LENGTH = 256
"""Picture cells of more characters stay in the file."""
LONGEST_REFERENCE = 64
"""Shorter picture cells are the index of the row that has the picture."""
_SHOWN = 5

# What pandas reads as "not given"; the published tables were written and scored with it.
_MISSING = frozenset(
    "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null|".split("|")
)


class Row(Mapping[str, str]):
    """A row of a table: cells by column. ``number`` and the ``line`` of the file that it starts in count from 1.

    Of its picture cell are known ``picture_length`` in characters, the number of ``pictures`` that it holds, and
    ``fingerprint``, which names the content (``""`` for an empty one).
    """

    def __init__(self, cells: dict[str, str], number: int, line: int, place: tuple[Path, int, int]) -> None:
        self.number = number
        self.line = line
        self._cells = cells
        self._path, self._start, self._size = place
        self._on_disk = False
        cell = cells.get(PICTURE_COLUMN, "")
        self.picture_length = len(cell)
        self.pictures = len(texts_of(cell)) if cell else 0
        self.fingerprint = hashlib.blake2b(cell.encode(), digest_size=12).hexdigest() if cell else ""
        if len(cell) > _KEPT_LENGTH:
            cells[PICTURE_COLUMN] = ""
            self._on_disk = True

    def __getitem__(self, column: str) -> str:
        if column != PICTURE_COLUMN or not self._on_disk:
            return self._cells[column]
        with open(self._path, "rb") as file:
            file.seek(self._start)
            text = file.read(self._size).decode("utf-8-sig")
        cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(self._path)))
        return cells[list(self._cells).index(PICTURE_COLUMN)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)


def read_table(path: str | Path) -> list[Row]:
    """Rows of a TSV or CSV file (by its name) with a header; cells may be quoted, hold newlines and be huge.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, not UTF-8, or a row has other than one cell for each column, as the last one of a
            file that was cut off has. The message names file, row and line.
    """
    path = Path(path)
    rows: list[Row] = []
    header: list[str] | None = None
    for cells, line, start, size in records(path):
        if header is None:
            header = _checked_header(path, cells)
            continue
        if len(cells) != len(header):
            is_cut = len(cells) < len(header)
            raise ValueError(
                f"{path}: row {len(rows) + 1} (line {line}) has {len(cells)} cells, the header has {len(header)}; "
                + ("is the file cut off? Download it again" if is_cut else "is a tab or a quote missing there?")
            )
        rows.append(Row(dict(zip(header, cells, strict=True)), len(rows) + 1, line, (path, start, size)))
    if header is None:
        raise ValueError(f"{path} is empty; download it again")
    return rows


def read_header(path: str | Path) -> list[str]:
    """Names of the columns; raises as ``read_table`` does."""
    for cells, *_ in records(Path(path)):
        return _checked_header(Path(path), cells)
    raise ValueError(f"{path} is empty; download it again")


def is_missing(cell: str | None) -> bool:
    """Whether a cell holds nothing: it is empty or has one of the marks, such as ``NaN``, that pandas takes for it."""
    return cell is None or cell in _MISSING


def cell_or_none(row: Mapping[str, str], column: str) -> str | None:
    """The cell of a column; None where there is no such column, or nothing in it."""
    cell = row.get(column)
    return None if is_missing(cell) else cell


def texts_of(cell: str) -> list[str]:
    """The parts of a cell, which may be the text of a Python list."""
    if not cell.startswith("["):
        return [cell]
    try:
        values = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError):
        return [cell]
    return [str(value) for value in values] if isinstance(values, list) and values else [cell]


def id_key(value: Any) -> str:
    """What ids are compared by: ``7``, ``"7"``, ``" 7 "`` and ``7.0`` (as spreadsheets have it) are one id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def plain_id(cell: str) -> int | str:
    """An id as a number where it is written as one."""
    return int(cell) if cell.isascii() and cell.isdigit() and str(int(cell)) == cell else cell


def require_columns(path: str | Path, rows: list[Row], columns: Sequence[str]) -> list[Row]:
    """The rows of a table, which must have some, and the columns.

    Raises:
        ValueError: If it has not; the message names the file and what it has.
    """
    if not rows:
        raise ValueError(f"{path} has a header but no rows; download it again")
    missing = [column for column in columns if column not in rows[0]]
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(rows[0])}. Is it the right file?"
        )
    return rows


def unique_rows(path: str | Path, rows: Sequence[Row], column: str = "index") -> tuple[list[Row], list[str]]:
    """The first row of each index, with a warning for the others."""
    first: dict[str, Row] = {}
    repeated = []
    for row in rows:
        if first.setdefault(id_key(row[column]), row) is not row:
            repeated.append(f"{row[column]} in row {row.number}")
    if not repeated:
        return list(first.values()), []
    shown = ", ".join(repeated[:_SHOWN]) + (", ..." if len(repeated) > _SHOWN else "")
    return list(first.values()), [
        f"{path}: {len(repeated)} rows repeat the {column} of an earlier row and were left out ({shown})"
    ]


def has_picture(row: Row) -> bool:
    """Whether the picture cell holds something; of a table without such cells, whether the row has a path."""
    if PICTURE_COLUMN in row:
        return row.picture_length > LONGEST_REFERENCE or not is_missing(row[PICTURE_COLUMN])
    return PATH_COLUMN not in row or not is_missing(row[PATH_COLUMN])


class TablePictures:
    """The pictures of a table's rows: base64 in the cell, the index of another row, or a path in a folder.

    ``image_path`` is relative to ``image_folder``; files there come before the cells. Files outside of it are refused,
    unless ``path_of`` says otherwise: the path of a name, for an owner in messages.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        image_folder: str | Path | None = None,
        owner: str = "table",
        path_of: Callable[[str, str], str] | None = None,
    ) -> None:
        self._folder = os.fspath(image_folder) if image_folder is not None else None
        self._owner = owner
        self._path_of = path_of or self._inside
        self._by_index = {id_key(row["index"]): row for row in reversed(rows) if "index" in row}

    def row(self, index: int | str) -> Row | None:
        """The row of an index; None if there is none."""
        return self._by_index.get(id_key(index))

    def count(self, row: Row) -> int:
        """Number of pictures of the row; 1 where that cannot be found out."""
        try:
            return len(self._names(row)) or self._source(row).pictures
        except ValueError:
            return 1

    def key(self, row: Row) -> str:
        """The same for all rows with the same picture."""
        names = self._names(row)
        if names:
            return " ".join(os.path.join(self._folder or "", name) for name in names)
        try:
            return self._source(row).fingerprint
        except ValueError:
            return f"row {row.number}"

    def opener(self, row: Row) -> "Opener | None":
        """A function that opens the picture, or the list of several pictures, of the row; None without one.

        It raises ``PictureError``, naming the table and the row, where the picture is not there or does not decode.
        """
        if not self._cell(row) and is_missing(row.get(PATH_COLUMN)):
            return None
        return lambda: self._open(row)

    def _open(self, row: Row) -> "Image.Image | list[Image.Image]":
        from mg_llava.data.pictures.files import open_picture

        owner = f"{self._owner}, index {row.get('index', row.number)}"
        pictures = [open_picture(self._path_of(name, owner), owner) for name in self._names(row)]
        if not pictures:
            pictures = [_decode(text, owner) for text in texts_of(self._source(row)[PICTURE_COLUMN])]
        return pictures[0] if len(pictures) == 1 else pictures

    def _names(self, row: Row) -> list[str]:
        """The files of a row's pictures; none where its cell is to be read, because there is no folder or no file."""
        if self._folder is None or is_missing(row.get(PATH_COLUMN)):
            return []
        from mg_llava.data.pictures.places import is_there, place_of  # needs numpy, without which tables are read

        names = texts_of(row[PATH_COLUMN])
        found = all(is_there(place_of(self._folder, name)) for name in names)
        return names if found or not self._cell(row) else []

    def _inside(self, name: str, owner: str) -> str:
        from mg_llava.data.pictures.files import picture_path

        return picture_path(str(self._folder), name, owner, advice="give a folder that holds it")

    def _cell(self, row: Row) -> bool:
        if row.picture_length > LONGEST_REFERENCE:
            return True
        return not is_missing(row.get(PICTURE_COLUMN))

    def _source(self, row: Row) -> Row:
        """The row whose cell holds the picture of ``row``.

        Raises:
            PictureError: There is no such row.
        """
        from mg_llava.data.pictures.files import PictureError

        owner = f"{self._owner}, index {row.get('index', row.number)}"
        passed = [row]
        while passed[-1].picture_length <= LONGEST_REFERENCE:
            target = passed[-1].get(PICTURE_COLUMN, "")
            source = self._by_index.get(id_key(target))
            if is_missing(target):
                raise PictureError(
                    f"{owner}: the picture cell is empty; give image_folder or repair the row", "missing"
                )
            if source is None:
                raise PictureError(
                    f"{owner}: the picture cell points at row {target!r}, which the table does not have; "
                    "download it again or repair the row",
                    "missing",
                )
            if any(source is other for other in passed):
                raise PictureError(f"{owner}: the picture cells point at each other in a circle", "missing")
            passed.append(source)
        return passed[-1]


def _decode(text: str, owner: str) -> "Image.Image":
    from PIL import Image

    from mg_llava.data.pictures.files import PictureError

    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise PictureError(
            f"picture of {owner} is not base64 ({error}); is the file cut off? Download it again", "undecodable"
        ) from error
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image
    except Exception as error:  # Pillow's plug-ins raise nearly anything on broken bytes
        raise PictureError(
            f"picture of {owner} cannot be decoded ({type(error).__name__}: {error}); download the table again",
            "truncated" if "truncated" in str(error).lower() else "undecodable",
        ) from error


def _checked_header(path: Path, cells: list[str]) -> list[str]:
    repeated = {name for name in cells if cells.count(name) > 1}
    if repeated:
        raise ValueError(f"{path}: the header has {', '.join(sorted(map(repr, repeated)))} more than once")
    return cells
