"""Files for the test servers of benchmarks whose answers are not public."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mg_llava.work.atomic import replacing, write_json

_LONGEST_CELL = 32_767


def write_submission(path: str | Path, lines: Sequence[Mapping[str, Any]] | None) -> None:
    """Write the lines of a result's ``submission``: a table for ``.xlsx`` and ``.tsv``, else a JSON list.

    Raises:
        ValueError: If there is nothing to submit, or a spreadsheet cannot be written.
    """
    path = Path(path)
    if lines is None:
        raise ValueError(f"{path}: nothing to submit: the data has the answers, or the benchmark has no test server")
    columns = list(dict.fromkeys(name for line in lines for name in line))
    if path.suffix.lower() == ".tsv":
        with replacing(path, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, delimiter="\t")
            writer.writeheader()
            writer.writerows(lines)
    elif path.suffix.lower() == ".xlsx":
        _write_xlsx(path, columns, lines)
    else:
        write_json(path, list(lines), indent=None)


def _write_xlsx(path: Path, columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> None:
    """Texts stay texts, also where they look like a formula (``=2x``) or like an error (``#N/A``)."""
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError as error:
        raise ValueError(
            f"{path}: writing spreadsheets needs openpyxl (pip install 'mg_llava[eval]'); .tsv needs nothing"
        ) from error
    for number, line in enumerate(lines, start=1):
        for name, value in line.items():
            if isinstance(value, str) and len(value) > _LONGEST_CELL:
                raise ValueError(
                    f"{path}: {name!r} of row {number} has {len(value)} characters, a spreadsheet's cell "
                    f"{_LONGEST_CELL} at most; write a .tsv"
                )
    workbook = Workbook(write_only=True)
    sheet = workbook.create_sheet()

    def cell(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        made = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", value))
        made.data_type = "s"
        return made

    for row in (columns, *([line.get(name) for name in columns] for line in lines)):
        sheet.append([cell(value) for value in row])
    with replacing(path) as file:
        workbook.save(file)
