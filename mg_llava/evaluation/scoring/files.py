"""Finding and reading JSON files of benchmarks and files of predictions, with messages that name file and line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Lines = list[dict[str, Any]]

_WRAPPERS = ("predictions", "results", "data", "outputs")
"""Keys under which other tools put the list of predictions."""


def find_files(paths: Sequence[str | Path], *patterns: str) -> list[Path]:
    """Those of the files, and of the files right inside of the folders, whose name matches a pattern.

    Args:
        paths: Files and folders.
        patterns: Globs such as ``*.jsonl``.
    """
    files = []
    for path in map(Path, paths):
        files.extend(sorted(path.iterdir()) if path.is_dir() else [path])
    return [file for file in files if any(file.match(pattern) for pattern in patterns)]


def find_file(paths: Sequence[str | Path], what: str, *patterns: str) -> Path:
    """The one file that matches; see ``find_files``.

    Raises:
        ValueError: If there is none, or more than one.
    """
    found = find_files(paths, *patterns)
    if len(found) == 1:
        return found[0]
    given = ", ".join(str(path) for path in paths)
    if not found:
        raise ValueError(f"{given}: no {what} there (looked for {', '.join(patterns)}); give the file itself")
    raise ValueError(f"{given}: several files may be the {what}: {', '.join(map(str, found))}; give one of them")


def read_text(path: str | Path) -> str:
    """Text of a UTF-8 file, without its byte order mark.

    Raises:
        ValueError: If it is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from error


def read_json(path: str | Path) -> Any:
    """Content of a JSON file.

    Raises:
        ValueError: If it is no JSON; the message names file and line.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {error.lineno}: not JSON ({error.msg}); is the file cut off?") from error


def read_json_lines(path: str | Path) -> Lines:
    """Objects of a JSON Lines file; blank lines are skipped.

    Raises:
        ValueError: If a line is no JSON object; the message names file and line.
    """
    return _parse_lines(path, read_text(path))


def _parse_lines(path: str | Path, text: str) -> Lines:
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


def _checked(line: Any, where: str) -> dict[str, Any]:
    if not isinstance(line, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(line).__name__}")
    return line


def take(record: Any, name: str, where: str) -> Any:
    """A field that a record must have.

    Raises:
        ValueError: If it has not; the message says where.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected an object, found {type(record).__name__}")
    if name not in record:
        raise ValueError(f"{where}: no field {name!r}; found {', '.join(map(repr, record))}")
    return record[name]


def check_unique(ids: Iterable[Any], path: str | Path) -> None:
    """Raise ``ValueError`` if an id occurs twice."""
    twice = [value for value, count in Counter(map(str, ids)).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: id {twice[0]} occurs more than once ({len(twice)} such ids); remove the extra rows")


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
    text = read_text(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("["):
            raise ValueError(
                f"{path}: line {error.lineno}: broken JSON list ({error.msg}); is the file cut off?"
            ) from error
        return _parse_lines(path, text)
    if isinstance(content, dict):
        return _lines_of_dict(content)
    if isinstance(content, list):
        return [_checked(line, f"{path}: entry {number}") for number, line in enumerate(content, start=1)]
    raise ValueError(f"{path}: holds {type(content).__name__}, expected prediction objects")


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
