"""Phrase grounding on Flickr30k Entities: where is what a phrase of a sentence names?

Recall@1 at an overlap of 0.5 by both protocols: ``merged_boxes``, the box around all boxes of the phrase, and
``any_box``, whichever of them fits best. Phrases without a box are not asked about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.families.refcoco import as_box_text
from mg_llava.evaluation.release import Release
from mg_llava.evaluation.scoring.joining import Lines, ScoreResult, join_predictions

if TYPE_CHECKING:  # others are scored without numpy
    from mg_llava.data.text.coordinates import BoxText

_PROMPT = 'In the sentence "{sentence}", where is "{phrase}"? Answer with one box.'


@dataclass(frozen=True)
class GroundedPhrase:
    """A phrase of a sentence with its boxes.

    Attributes:
        id: Picture, number of the sentence and of the phrase in it: a phrase may stand twice in a sentence.
        picture: Id of the picture.
        sentence: The whole sentence.
        phrase: The words.
        boxes: xyxy in pixels, one at least.
        size: Width and height of the picture.
    """

    id: str
    picture: str
    sentence: str
    phrase: str
    boxes: tuple[tuple[float, float, float, float], ...]
    size: tuple[int, int]


def load_flickr30k(paths: Sequence[Path]) -> list[GroundedPhrase]:
    """Phrases of a folder of Flickr30k Entities, those of ``test.txt`` or of the list of ids that comes after it."""
    from mg_llava.data.synthesis.flickr30k import read_entities, read_ids, read_sentences

    folder, *lists = paths
    if len(lists) > 1 or not folder.is_dir():
        raise ValueError("Flickr30k Entities: the folder with Sentences and Annotations is needed, and a list of ids")
    found = []
    for name in read_ids(lists[0] if lists else folder / "test.txt"):
        entities = read_entities(folder / "Annotations" / f"{name}.xml")
        for number, sentence in enumerate(read_sentences(folder / "Sentences" / f"{name}.txt")):
            for place, phrase in enumerate(sentence.phrases):
                boxes = tuple(entities.boxes.get(phrase.chain, ()))
                if boxes:
                    key = f"{name}#{number}#{place}"
                    found.append(GroundedPhrase(key, name, sentence.text, phrase.text, boxes, entities.size))
    return found


def score_flickr30k(
    phrases: Sequence[GroundedPhrase],
    predictions: Lines,
    text: "BoxText | Mapping[str, Any] | None" = None,
    **options: Any,
) -> ScoreResult:
    """Recall by both protocols; lines have ``id`` and ``text`` with boxes as ``text`` says, a ``BoxText``."""
    import numpy as np

    from mg_llava.data.text.coordinates import BoxText
    from mg_llava.evaluation.scoring.grounding import Protocol, compare_boxes, grounding_rule, read_reply

    joined = join_predictions([phrase.id for phrase in phrases], predictions, "id", ("text", "pred_text"))
    writing = as_box_text(text) or BoxText()
    found = [read_reply(reply, phrase.size, writing) for reply, phrase in zip(joined.texts, phrases, strict=True)]
    targets = [np.array(phrase.boxes) / np.tile(phrase.size, 2) for phrase in phrases]
    rules = {}
    for protocol in get_args(Protocol):
        samples = [
            {"id": phrase.id, **compare_boxes(boxes, target, protocol)}
            for phrase, boxes, target in zip(phrases, found, targets, strict=True)
        ]
        rules[protocol] = grounding_rule(samples, [phrase.picture for phrase in phrases])
    return joined.result(rules)


@BENCHMARKS.register
class PhraseGrounding(Benchmark):
    """Phrase grounding on Flickr30k Entities.

    Args:
        text: How the model writes boxes, a ``BoxText`` or its settings; None for what it was trained with.
        **arguments: As of ``Benchmark``.
    """

    scorer = "flickr30k"
    form = 'folder of Flickr30k Entities, and a list of ids; lines {"id", "text"}'
    load, rate = staticmethod(load_flickr30k), staticmethod(score_flickr30k)
    releases = tuple(
        Release(
            f"flickr30k_{split}",
            ("flickr30k/entities", f"flickr30k/entities/{split}.txt"),
            "flickr30k/images",
            "https://github.com/BryanPlummer/flickr30k_entities (annotations.zip unpacked) to flickr30k/entities, the "
            "pictures of Flickr30k to flickr30k/images",
            None,
            "not in the paper; papers differ in the protocol: merged_boxes and any_box are both given",
        )
        for split in ("val", "test")
    )
    id_field, text_field = "id", "text"
    headline = ("merged_boxes", "accuracy")

    def __init__(self, *args: Any, text: "BoxText | Mapping[str, Any] | None" = None, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.text, self.is_open = as_box_text(text), text is None

    def questions(self) -> Sequence[Question]:
        """One for each phrase with a box."""
        return [
            self.ask(
                one.id,
                _PROMPT.format(sentence=one.sentence, phrase=one.phrase),
                f"{one.picture}.jpg",
                owner=f"phrase {one.id}",
                box_key=one.picture,
            )
            for one in load_flickr30k(self.data)
        ]

    def score(self, predictions: Lines, **options: Any) -> ScoreResult:
        """As of ``Benchmark``, with the class's ``text``."""
        return super().score(predictions, **{"text": self.text, **options})
