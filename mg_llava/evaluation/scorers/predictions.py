"""Reading prediction files: JSON lines, JSON, TSV, CSV or a spreadsheet, with messages that name file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Lines = list[dict[str, Any]]

_WRAPPERS = ("predictions", "results", "data", "outputs")


def read_predictions(path: str | Path) -> Lines:
    """Prediction lines of a file.

    Args:
        path: ``.tsv``, ``.csv`` or ``.xlsx`` (needs openpyxl) with a header row; anything else is JSON lines, a JSON
            list of objects, or one JSON object. Of an object, the values become lines with their key as ``id``,
            ``index`` and ``question_id`` where they lack them (a value that is no object is the ``prediction``,
            ``text`` and ``response``).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"predictions {path} do not exist")
    readers: dict[str, Callable[[Path], Lines]] = {".tsv": _read_table, ".csv": _read_table, ".xlsx": _read_xlsx}
    return readers.get(path.suffix.lower(), _read_json)(path)


def _read_table(path: Path) -> Lines:
    from mg_llava.data.records.tables import read_table

    return [dict(row) for row in read_table(path)]


def _read_xlsx(path: Path) -> Lines:
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise ValueError(f"{path}: reading spreadsheets needs openpyxl (pip install 'mg_llava[eval]')") from error
    try:
        workbook = load_workbook(path, read_only=True)
    except Exception as error:  # openpyxl and zipfile raise nearly anything on a broken file
        raise ValueError(f"{path}: not a readable spreadsheet ({error})") from error
    rows = workbook.worksheets[0].iter_rows(values_only=True)
    header = [str(cell) for cell in next(rows, ())]
    return [dict(zip(header, row, strict=False)) for row in rows if any(cell is not None for cell in row)]


def _read_json(path: Path) -> Lines:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from error
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        return _read_json_lines(path, text, error)
    if isinstance(content, dict):
        return _lines_of_dict(content)
    if isinstance(content, list):
        return [_checked(line, f"{path}: entry {number}") for number, line in enumerate(content, start=1)]
    raise ValueError(f"{path}: holds {type(content).__name__}, expected prediction objects")


def _read_json_lines(path: Path, text: str, whole: json.JSONDecodeError) -> Lines:
    if text.lstrip().startswith("["):
        raise ValueError(
            f"{path}: line {whole.lineno}: broken JSON list ({whole.msg}); is the file cut off?"
        ) from whole
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand in a JSON string
        if not line.strip():
            continue
        try:
            lines.append(_checked(json.loads(line), f"{path}: line {number}"))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}: line {number} is not JSON ({error.msg}); is the file cut off? Remove or repair the line"
            ) from error
    return lines


def _lines_of_dict(content: dict[str, Any]) -> Lines:
    for name in _WRAPPERS:
        if isinstance(content.get(name), list) and all(isinstance(line, dict) for line in content[name]):
            return content[name]
    if any(name in content for name in ("index", "question_id", "id")) and not any(
        isinstance(value, dict) for value in content.values()
    ):
        return [content]  # JSON lines with a single line
    lines = []
    for key, value in content.items():
        names = {"id": key, "index": key, "question_id": key}
        reply = value if isinstance(value, dict) else {"prediction": value, "text": value, "response": value}
        lines.append({**names, **reply})
    return lines


def _checked(line: Any, where: str) -> dict[str, Any]:
    if not isinstance(line, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(line).__name__}")
    return line
