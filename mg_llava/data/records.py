"""Record files (JSON, JSON Lines), and a container that keeps many records in one flat array."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .schema import RecordError


def read_json(path: str | Path) -> Any:
    """Read a ``.json`` file, or a ``.jsonl`` file into a list.

    Raises:
        FileNotFoundError: There is no such file.
        RecordError: The file is truncated or not JSON; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"record file {path} does not exist; check data_path and box_path in the config")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".jsonl":
            return json.loads(text)
        # Not splitlines, which also splits at separators that JSON strings may hold.
        return [_parse_line(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        hint = "" if path.suffix == ".jsonl" else "; JSON Lines files must end in .jsonl"
        raise RecordError(f"{path} is truncated or not JSON: {error}{hint}") from error


def read_record_list(path: str | Path) -> list[Any]:
    """Read a file of records in LLaVA format.

    Raises:
        RecordError: The file is broken, holds no list, or the list is empty.
    """
    records = read_json(path)
    if not isinstance(records, list):
        raise RecordError(f"{path} holds a {type(records).__name__}; a list of records is needed")
    if not records:
        raise RecordError(f"{path} holds no records")
    return records


class PackedRecords:
    """A list of JSON values in one array of bytes.

    Worker processes share it without copying, as no reference counts live in it.
    """

    def __init__(self, records: Iterable[Any]) -> None:
        chunks = [json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") for record in records]
        self._ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(chunks), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        start = 0 if index == 0 else self._ends[index - 1]
        return json.loads(self._bytes[start : self._ends[index]].tobytes().decode("utf-8", "surrogatepass"))


def _parse_line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise json.JSONDecodeError(f"line {number} of the file: {error.msg}", error.doc, error.pos) from error
