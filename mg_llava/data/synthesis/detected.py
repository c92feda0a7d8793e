"""Box files of ours, of a tagger and a detector, with the records whose pictures they are about."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from mg_llava.data.boxes.store import open_box_store
from mg_llava.data.records.open import open_records
from mg_llava.data.records.schema import LLaVARecord, RecordError, parse_record
from mg_llava.data.synthesis.readers import SceneReader
from mg_llava.data.synthesis.reserved import picture_ids
from mg_llava.data.synthesis.scenes import Scene, Thing, box_overlap

_LEAST_SCORE = 0.3
_MOST_BOXES = 8
_SAME = 0.7


class BoxFileReader(SceneReader):
    """It needs a box file or store, the record file with the same ids, and the folder of the records' pictures.

    Boxes of a score below 0.3 are left out, and of those at one place the best counts. An answer of the record that
    is a text about the picture becomes a caption with boxes behind the words that are labels.
    """

    kind = "boxes"

    def __init__(self, boxes: str | Path, records: str | Path, images: str | Path) -> None:
        super().__init__(Path(boxes).stem, [Path(boxes), Path(records)], images)

    def scenes(self) -> Iterator[Scene]:
        """See :class:`SceneReader`; each picture once, under the id of the first record with it."""
        store = open_box_store(self.files[0], missing="empty")
        seen: set[str] = set()
        for number, raw in enumerate(open_records(self.files[1])):
            record = parse_record(raw, str(self.files[1]), number)
            for key, name in zip(record.box_keys, record.images, strict=True):
                found = None if name in seen else store.find(key)
                if found is None:
                    continue
                seen.add(name)
                path = str(self.images / name)
                order = sorted(range(len(found)), key=lambda one: -found.scores[one])
                good = [one for one in order if found.scores[one] >= _LEAST_SCORE and found.labels[one].strip()]
                things = _apart([Thing(tuple(found.boxes[one].tolist()), found.labels[one]) for one in good])
                captions = tuple(_captions(record, things)) if len(record.images) == 1 else ()
                yield Scene(key, path, store.image_size(key), things, captions=captions, ids=picture_ids(path))
        if not seen:
            raise RecordError(f"{self.files[0]} has no boxes for any picture of {self.files[1]}; give files of one id")


def _apart(things: Sequence[Thing]) -> tuple[Thing, ...]:
    """The things that are not at the place of a better one, whatever their labels."""
    kept: list[Thing] = []
    for thing in things:
        if all(box_overlap(thing.box, other.box) < _SAME for other in kept):
            kept.append(thing)
    return tuple(kept)


def _captions(record: LLaVARecord, things: Sequence[Thing]) -> Iterator[str]:
    """Answers of several words with boxes behind the first mention of labels that one thing alone has."""
    labels = [thing.label.lower() for thing in things]
    alone = {label: number for number, label in enumerate(labels) if labels.count(label) == 1}
    for turn in record.turns:
        if turn.role != "gpt" or "<" in turn.text or len(turn.text.split()) < 4:
            continue
        places: dict[int, int] = {}
        taken: list[tuple[int, int]] = []
        for label in sorted(alone, key=lambda label: (-len(label), label)):
            match = re.search(rf"\b{re.escape(label)}\b", turn.text, re.IGNORECASE)
            if match and len(places) < _MOST_BOXES and all(match.end() <= a or match.start() >= b for a, b in taken):
                places[match.end()] = alone[label]
                taken.append(match.span())
        cuts = [0, *sorted(places), len(turn.text)]
        pieces = [turn.text[a:b] + (f" <box:{places[b]}>" if b in places else "") for a, b in pairwise(cuts)]
        yield "".join(pieces)  # without boxes too, to be counted
