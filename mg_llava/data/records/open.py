"""Record files: JSON, JSON Lines, Parquet; their content never lies in memory as Python objects."""

import hashlib
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg_llava.data.records.json_stream import json_lines, stream_json
from mg_llava.data.records.schema import RecordError
from mg_llava.data.records.shards import PlacedRecords, TarRecords
from mg_llava.work.json_text import parse_json
from mg_llava.work.tar_files import is_tar
from mg_llava.work.urls import local_file

_CHUNK = 1 << 20
_ROWS = 1024


def open_records(path: str | Path) -> Sequence[Any]:
    """Open a file of records: ``.jsonl``, ``.parquet``, a ``.json`` file that holds a list; or tar files (shards).

    Of a file at a URL a copy on this machine is read (see ``work.urls.local_file``).

    The first pass over all records also learns where they lie (a length or an index asked for before makes such a
    pass), so pass over them once before anything else. Faults of the file are errors then; those of records are not
    looked for.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The file is Parquet and pyarrow is not installed.
        RecordError: A Parquet file is broken.
        TarError: Tar files are damaged.
        TransferError: A URL cannot be read now.
    """
    if is_tar(os.fspath(path)):
        return TarRecords(os.fspath(path))
    file = local_file(path)
    if not file.is_file():
        raise FileNotFoundError(f"record file {path} does not exist; check data_path, data_root and box_path")
    return ParquetRecords(file) if file.suffix == ".parquet" else TextRecords(file)


def fingerprint(path: str | Path) -> str:
    """Short hash of a file's content; of tar files that of their records and their members' names."""
    digest = hashlib.blake2b(digest_size=16)
    if is_tar(os.fspath(path)):
        records = TarRecords(os.fspath(path))
        for number in range(len(records)):
            for part in (records.text(number), records.names(number)):
                digest.update(hashlib.blake2b(part).digest())
        return digest.hexdigest()
    with open(local_file(path), "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class TextRecords(PlacedRecords):
    """Records of JSON and JSON Lines files; each is read from the file when it is asked for.

    So memory, in worker processes too, does not grow with the size of the records. Places in JSON Lines are found
    without decoding, so that a broken record costs nothing but itself when it is asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: np.ndarray | None = None

    def __iter__(self) -> Iterator[Any]:
        """All records in order, in one pass over the file."""
        places = array("q")
        for entry in stream_json(self.path, allow_objects=False):
            places.extend((entry.start, entry.end - entry.start))
            yield entry.value
        self._places = np.frombuffer(places, dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.places)

    def at(self, index: int) -> Any:
        """Record ``index``.

        Raises:
            RecordError: It is no JSON.
        """
        start, size = self.places[index].tolist()
        file = self.__dict__.get("_file")
        if file is None:
            # Of threads that open it at once one wins, and nobody reads from the others' files, which are closed.
            file = self.__dict__.setdefault("_file", open(self.path, "rb", buffering=0))
        # Leaves the file's position alone, which forked processes share.
        text = os.pread(file.fileno(), size, start)
        try:
            return parse_json(text)
        except ValueError as error:
            is_line = self.path.suffix == ".jsonl"
            advice = "write the record again" if is_line else "the file was changed while it was in use, start again"
            raise RecordError(f"{self.path}, record {index}: {error}; {advice}") from error

    @property
    def places(self) -> np.ndarray:
        """(N, 2) int64: first byte and number of bytes of each record; can be set where they are known."""
        if self._places is None and self.path.suffix == ".jsonl":
            places = array("q")
            for _, line, start in json_lines(self.path):
                places.extend((start, len(line)))
            self._places = np.frombuffer(places, dtype=np.int64).reshape(-1, 2)
        elif self._places is None:
            for _ in self:
                pass
        assert self._places is not None
        return self._places

    @places.setter
    def places(self, places: np.ndarray) -> None:
        self._places = places

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            self.__dict__["_file"].close()


class ParquetRecords(PlacedRecords):
    """Rows of a Parquet file as records; columns that are null in a row are absent from its record.

    The table is decompressed into Arrow's memory, which forked workers share; for files that are larger than the
    memory, use JSON Lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._table = _read_parquet(path)

    def __len__(self) -> int:
        return self._table.num_rows

    def __iter__(self) -> Iterator[Any]:
        for batch in self._table.to_batches(max_chunksize=_ROWS):
            yield from map(_present, batch.to_pylist())

    def at(self, index: int) -> Any:
        """Record ``index``."""
        return _present(self._table.slice(index, 1).to_pylist()[0])

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
