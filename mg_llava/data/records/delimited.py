"""Records of TSV and CSV files with their place in the file, so that they can be read again one by one."""

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


def records(path: Path) -> Iterator[tuple[list[str], int, int, int]]:
    """Cells, first line, first byte and number of bytes of each record that is not blank.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8, or ends inside of a quoted cell; the message names file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"table {path} does not exist")
    with open(path, "rb") as file:
        lines = _Lines(path, file)
        reader = csv.reader(lines, delimiter=delimiter_of(path))
        while True:
            start, line = lines.position, lines.number + 1
            lines.record.clear()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise ValueError(f"{path}: line {line} cannot be read ({error}); download the file again") from error
            if cells is None:
                return
            if lines.ended and _is_open(lines.record, path):
                raise ValueError(
                    f"{path}: the file ends inside of the quoted cell of a row that starts in line {line}: it is cut "
                    "off; download it again"
                )
            if cells:
                yield cells, line, start, lines.position - start


class _Lines:
    """Decoded lines of a binary file for the CSV reader, with the position of what has been handed out."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self.position = self.number = 0
        self.ended = False
        self.record: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.position += len(line)
            self.number += 1
            try:
                text = line.decode("utf-8-sig" if self.number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{self._path}: line {self.number} is not UTF-8 text ({error.reason})") from error
            self.record.append(text)
            yield text
        self.ended = True


def _is_open(lines: Sequence[str], path: Path) -> bool:
    """Whether the last record ends inside of a quoted cell."""
    try:
        list(csv.reader(lines, delimiter=delimiter_of(path), strict=True))
    except csv.Error as error:
        return "unexpected end" in str(error)
    return False


def delimiter_of(path: Path) -> str:
    """Comma for ``.csv``, else tab."""
    return "," if path.suffix.lower() == ".csv" else "\t"
