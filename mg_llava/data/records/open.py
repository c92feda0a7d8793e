"""Record files: JSON, JSON Lines, Parquet; their content never lies in memory as Python objects."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mg_llava.data.records.schema import RecordError
from mg_llava.data.records.text import JsonLinesRecords, JsonRecords

_CHUNK = 1 << 20
_ROWS = 1024


def open_records(path: str | Path) -> Sequence[Any]:
    """Open a file of records: ``.jsonl``, ``.parquet``, or a ``.json`` file that holds a list.

    The first pass over all records also learns where they lie (a length or an index asked for before makes such a
    pass), so pass over them once before anything else. Faults of the file are errors then; those of records are not
    looked for.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The file is Parquet and pyarrow is not installed.
        RecordError: A Parquet file is broken.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"record file {path} does not exist; check data_path, data_root and box_path")
    if path.suffix == ".parquet":
        return ParquetRecords(path)
    return JsonLinesRecords(path) if path.suffix == ".jsonl" else JsonRecords(path)


def fingerprint(path: str | Path) -> str:
    """Short hash of a file's content."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class ParquetRecords(Sequence[Any]):
    """Rows of a Parquet file as records; columns that are null in a row are absent from its record.

    The table is decompressed into Arrow's memory, which forked workers share; for files that are larger than the
    memory, use JSON Lines.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._table = _read_parquet(self.path)

    def __len__(self) -> int:
        return self._table.num_rows

    def __iter__(self) -> Iterator[Any]:
        for batch in self._table.to_batches(max_chunksize=_ROWS):
            yield from map(_present, batch.to_pylist())

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        return _present(self._table.slice(row, 1).to_pylist()[0])

    def __reduce__(self) -> Any:
        return type(self), (self.path,)


def _present(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


def _read_parquet(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{path} is a Parquet file, which needs pyarrow: pip install 'mg_llava[parquet]', or convert it to .jsonl"
        ) from error
    try:
        return pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise RecordError(f"{path} is truncated or not Parquet: {error}") from error
