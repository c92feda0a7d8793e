"""Records in tar files as WebDataset writes them: members of one name before the first dot are one sample.

``000017.json`` is a record, ``000017.jpg`` its picture: a record without ``image`` and ``video`` has the members of
its sample that are pictures or a video, one without ``id`` has its sample's name. WebDataset writes the members of a
sample side by side; here they are one sample wherever they lie, as tar itself puts them in any order.
"""

from array import array
from collections.abc import Iterator, Sequence
from os.path import splitext
from typing import Any

import numpy as np

from mg_llava.data.records.schema import RecordError
from mg_llava.data.records.turns import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from mg_llava.work.json_text import parse_json
from mg_llava.work.tar_files import Member, open_tars
from mg_llava.work.tar_index import name_key

_RECORD = ".json"
_NOWHERE = [-1] * len(Member._fields)


class PlacedRecords(Sequence[Any]):
    """Records by their places, negative ones and slices as of lists."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.at(range(len(self))[index])

    def at(self, index: int) -> Any:
        """Record ``index``, from 0 on."""
        raise NotImplementedError


class TarRecords(PlacedRecords):
    """The records of tar files, in the order of the files and their members; each is read when it is asked for.

    Args:
        pattern: See ``work.tar_files.list_tars``.

    Raises:
        FileNotFoundError: A tar file is not there.
        TarError: One is damaged, or two have members of one name.
        RecordError: There are no records, or a sample has several, or one under a longer name.
        TransferError: A tar file cannot be read now.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        runs = _Runs(pattern)
        places, ends, text = array("q"), array("q"), bytearray()
        for sample, place, endings in runs.samples():
            places.extend(place)
            text += "\0".join([sample, *endings]).encode("utf-8", "surrogatepass")
            ends.append(len(text))
        if not ends:
            raise RecordError(f"{pattern} has no member that ends in {_RECORD}; name the file of the records instead")
        self._places = np.frombuffer(places, dtype=np.int64).reshape(-1, len(Member._fields))
        self._ends = np.frombuffer(ends, dtype=np.int64)
        self._names = np.frombuffer(bytes(text), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def at(self, index: int) -> Any:
        """Record ``index``.

        Raises:
            RecordError: It is no JSON, or cannot be read.
        """
        sample, *endings = self.names(index).decode("utf-8", "surrogatepass").split("\0")
        try:
            record = parse_json(self.text(index))
        except ValueError as error:
            raise RecordError(f"{self.pattern}, {sample}{_RECORD}: {error}; write the shard again") from error
        if not isinstance(record, dict):
            return record
        files = [sample + ending for ending in endings]
        pictures = [name for name in files if splitext(name)[1].lower() in PICTURE_SUFFIXES]
        videos = [name for name in files if splitext(name)[1].lower() in VIDEO_SUFFIXES]
        found: dict[str, Any] = {"id": sample}
        if not {"image", "images", "video"} & record.keys() and (pictures or videos):
            shown = pictures or videos
            found["image" if pictures else "video"] = shown[0] if len(shown) == 1 else shown
        return {**found, **record}

    def names(self, index: int) -> bytes:
        """The name of the sample of record ``index`` and the endings of its other members, with NULs between them."""
        start = int(self._ends[index - 1]) if index else 0
        return self._names[start : int(self._ends[index])].tobytes()

    def text(self, index: int) -> bytes:
        """The JSON text of record ``index``; errors as of ``TarFiles.read``."""
        return open_tars(self.pattern).read(Member(*self._places[index].tolist()))


class _Runs:
    """Members of tar files that follow one another and are of one sample; flat arrays, as there are many.

    Raises:
        RecordError: A sample has several records, or one under a longer name.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._places, self._ends, self._text = array("q"), array("q"), bytearray()
        keys = array("Q")
        for sample, endings in _neighbors(pattern):
            own = [ending for ending in endings if ending.lower() == _RECORD]
            if len(own) > 1:
                raise self._not_one(sample, own)
            self._places.extend(endings[own[0]] if own else _NOWHERE)
            self._text += "\0".join([sample, *endings]).encode("utf-8", "surrogatepass")
            self._ends.append(len(self._text))
            keys.extend(name_key(sample))
        self._group(np.frombuffer(keys, dtype=np.uint64).reshape(-1, 2))

    def _group(self, keys: np.ndarray) -> None:
        """Find the runs of one sample by the (R, 2) keys of its name."""
        self._order = np.lexsort((keys[:, 1], keys[:, 0]))
        ordered = keys[self._order]
        is_new = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))[: len(ordered)]
        self._starts = np.append(np.flatnonzero(is_new), len(ordered))
        self._sample_of = np.empty(len(ordered), dtype=np.int64)
        self._sample_of[self._order] = np.cumsum(is_new) - 1
        self._is_apart = (np.diff(self._starts) > 1)[self._sample_of].tobytes()

    def samples(self) -> Iterator[tuple[str, Sequence[int], list[str]]]:
        """Of each record its sample's name, its place, and the endings of the sample's other members, in order."""
        width = len(Member._fields)
        for run in range(len(self._ends)):
            sample, endings = self._names(run)
            place = self._places[run * width : (run + 1) * width]
            if place[0] < 0 and not any(ending.lower().endswith(_RECORD) for ending in endings):
                continue
            if self._is_apart[run]:
                first, end = self._starts[self._sample_of[run] :][:2].tolist()
                endings = [ending for one in self._order[first:end].tolist() for ending in self._names(one)[1]]
            own = [ending for ending in endings if ending.lower() == _RECORD]
            if len(own) != 1:
                raise self._not_one(sample, [ending for ending in endings if ending.lower().endswith(_RECORD)])
            if place[0] >= 0:
                yield sample, place, [ending for ending in endings if ending != own[0]]

    def _names(self, run: int) -> tuple[str, list[str]]:
        start = self._ends[run - 1] if run else 0
        sample, *endings = self._text[start : self._ends[run]].decode("utf-8", "surrogatepass").split("\0")
        return sample, endings

    def _not_one(self, sample: str, endings: Sequence[str]) -> RecordError:
        named = ", ".join(sample + ending for ending in endings)
        return RecordError(f"{self._pattern}: sample {sample!r} needs one {sample}{_RECORD}, found {named}; rename")


def _neighbors(pattern: str) -> Iterator[tuple[str, dict[str, Member]]]:
    """Name of each sample, and the members that follow one another under it, by their endings."""
    last: str | None = None
    endings: dict[str, Member] = {}
    for name, member in open_tars(pattern).list_members():
        folder, _, file = name.rpartition("/")
        stem, dot, ending = file.partition(".")
        sample = f"{folder}/{stem}" if folder else stem
        if sample != last:
            if last is not None:
                yield last, endings
            last, endings = sample, {}
        endings[dot + ending] = member
    if last is not None:
        yield last, endings
