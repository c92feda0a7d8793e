"""Records in tar files as WebDataset writes them: members of one name before the first dot are one sample.

``000017.json`` is a record, ``000017.jpg`` its picture: a record without ``image`` and ``video`` has the members of
its sample that are pictures or a video, one without ``id`` has its sample's name.
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

_RECORD = ".json"


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
        places, ends, text = array("q"), array("q"), bytearray()
        for sample, endings in _samples(pattern):
            texts = [ending for ending in endings if ending.lower().endswith(_RECORD)]
            own = [ending for ending in texts if ending.lower() == _RECORD]
            if len(own) > 1 or (texts and not own):
                named = ", ".join(sample + ending for ending in texts)
                raise RecordError(f"{pattern}: sample {sample!r} needs one {sample}{_RECORD}, found {named}; rename")
            if own:
                places.extend(endings.pop(own[0]))
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
        start = int(self._ends[index - 1]) if index else 0
        names = self._names[start : int(self._ends[index])].tobytes().decode("utf-8", "surrogatepass")
        sample, *endings = names.split("\0")
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
            found |= {"image": pictures[0] if len(pictures) == 1 else pictures} if pictures else {"video": videos[0]}
        return {**found, **record}

    def text(self, index: int) -> bytes:
        """The JSON text of record ``index``; errors as of ``TarFiles.read``."""
        return open_tars(self.pattern).read(Member(*self._places[index].tolist()))


def _samples(pattern: str) -> Iterator[tuple[str, dict[str, Member]]]:
    """Name of each sample, and the members that follow one another under it, by their endings."""
    last: tuple[int, str] | None = None
    endings: dict[str, Member] = {}
    for name, member in open_tars(pattern).list_members():
        folder, _, file = name.rpartition("/")
        stem, dot, ending = file.partition(".")
        sample = member.tar, f"{folder}/{stem}" if folder else stem
        if sample != last:
            if last is not None:
                yield last[1], endings
            last, endings = sample, {}
        endings[dot + ending] = member
    if last is not None:
        yield last[1], endings
