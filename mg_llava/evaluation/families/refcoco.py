"""RefCOCO, RefCOCO+ and RefCOCOg: does the box that a reply names overlap the true one by more than half?

Two forms of replies: ``{<x1><y1><x2><y2>}`` in percent of the original picture (XTuner), and ``[x1, y1, x2, y2]``
as fractions of the original or of the padded picture (LLaVA). Published rules read them as their scripts do; the rule
``box_text`` reads any style of boxes as models of ours are taught to write them, see ``scoring.grounding``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mg_llava.data.records.tables import id_key
from mg_llava.data.text import published_boxes
from mg_llava.evaluation.benchmark import BENCHMARKS, Benchmark, Question
from mg_llava.evaluation.release import COCO, Release
from mg_llava.evaluation.scoring import box_replies, joining
from mg_llava.evaluation.scoring.figures import mean, mean_score
from mg_llava.evaluation.scoring.files import find_files, listing, read_records, take
from mg_llava.evaluation.scoring.joining import Line, Lines, Rule, ScoreResult
from mg_llava.tokens import IMAGE_PLACEHOLDER

if TYPE_CHECKING:  # others are scored without numpy
    from mg_llava.data.text.coordinates import BoxText

BoxFormat = Literal["original", "padded"]

_ID_FIELDS = ("id", "question_id", "img_id", "index")
_LMMS_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
_NOWHERE: published_boxes.Box = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Referred:
    """One sentence and the box that it refers to.

    Attributes:
        id: XTuner's ``<picture>-<sentence>``, with a number where that is not unique, or the id of the file.
        names: How predictions may name it: by ``id`` without its number, by ``id``, by the file's own id, and by the
            number of its line, from 0.
        sentence: The expression.
        picture: File name of the picture, as far as the file tells.
        xywh: Box in pixels of the original picture; None where the file has fractions only.
        size: Width and height in pixels; None where the file does not tell.
        fractions: Box xyxy as the file has it in fractions; None where it has pixels only.
    """

    id: str
    names: tuple[str, ...]
    sentence: str
    picture: str
    xywh: published_boxes.Box | None
    size: tuple[int, int] | None
    fractions: published_boxes.Box | None

    def box(self, box_format: BoxFormat) -> published_boxes.Box:
        """The box xyxy as fractions of the original or of the padded picture."""
        if self.fractions is not None:
            return self.fractions
        import numpy as np  # other benchmarks are scored without it

        from mg_llava.data.pictures.frames import to_shares

        assert self.xywh is not None and self.size is not None
        x, y, w, h = self.xywh
        x1, y1, x2, y2 = to_shares(np.array([x, y, x + w, y + h]), self.size, box_format).tolist()
        return x1, y1, x2, y2


def load_refcoco(paths: Sequence[Path]) -> list[Referred]:
    """Sentences of XTuner's JSON list (``img_id, sents, bbox, height, width``) or of a LLaVA-style jsonl.

    A line of the latter has the box as ``ans`` (fractions xyxy) or as ``bbox`` (pixels xywh) with the picture's size.
    """
    records = []
    for path in find_files(paths, "*.json", "*.jsonl"):
        lines = read_records(path)
        if not isinstance(lines, list):
            raise ValueError(f"{path}: expected a list of sentences with boxes, found {type(lines).__name__}")
        records += [_referred(line, f"{path}: entry {number}", number) for number, line in enumerate(lines, start=1)]
    if not records:
        raise ValueError(f"{listing(paths)}: no sentences with boxes there (looked for *.json, *.jsonl)")
    ids = joining.number_repeated([record.id for record in records])
    return [replace(one, id=name, names=(one.id, name, *one.names)) for one, name in zip(records, ids, strict=True)]


def score_refcoco(
    annotations: Sequence[Referred],
    predictions: Lines,
    box_format: BoxFormat = "original",
    text: "BoxText | Mapping[str, Any] | None" = None,
    **options: Any,
) -> ScoreResult:
    """Accuracy at an overlap of one half by the rules for the form of the replies.

    Lines have an ``id`` and ``ans`` (XTuner's form) or ``pred_text`` (LLaVA's); under another name the reply's own
    form decides. Fractions are of the original or, by ``box_format``, of the padded picture; ``text`` is how boxes
    are written for the rule ``box_text``, or settings of ``BoxText``; by default as the form has them.
    """
    if box_format not in get_args(BoxFormat):
        raise ValueError(f"box_format is {box_format!r}; allowed: {', '.join(get_args(BoxFormat))}")
    lines = [_with_form(line) for line in predictions]
    joined = joining.join_repeated(_names(annotations, lines), lines, _line_name, ("ans", "pred_text"))
    forms = [field for field in ("ans", "pred_text") if any(field in line for line in lines)] or ["ans"]
    rules = {
        rule: _score(annotations, joined.lines, field, rule, box_format) for field in forms for rule in _RULES[field]
    }
    rules["box_text"] = _score_box_text(annotations, joined.lines, box_format, as_box_text(text))
    return joined.result(rules, box_format=box_format)


def _line_name(line: Line) -> str:
    return id_key(next((line[name] for name in _ID_FIELDS if name in line), None))


def _names(annotations: Sequence[Referred], lines: Lines) -> list[str]:
    """The ids of the sentences that the predictions use: of all ways to name them, the one that meets most."""
    found = {_line_name(line) for line in lines}
    ways = zip(*(record.names for record in annotations), strict=True)
    return list(max(ways, key=lambda names: len(found.intersection(names)), default=()))


def xtuner_target(record: Referred) -> published_boxes.Box:
    """The true box in percent, truncated."""
    x1, y1, x2, y2 = (int(value * 100) for value in record.box("original"))
    return x1, y1, x2, y2


def _score_xtuner(text: str, record: Referred, box_format: BoxFormat) -> dict[str, Any]:
    """XTuner: percent of the original picture, whole numbers."""
    box, target = published_boxes.parse_xtuner(text), xtuner_target(record)
    iou = 0.0 if box is None else box_replies.overlap(box, target, border=1)
    return {"score": float(iou > 0.5), "iou": iou, "parsed": box, "answer": target}


def _score_llava_hr(text: str, record: Referred, box_format: BoxFormat) -> dict[str, Any]:
    box, target = published_boxes.parse_llava_hr(text), record.box(box_format)
    iou = box_replies.overlap_single_precision(box or _NOWHERE, target)
    return {"score": float(iou > 0.5), "iou": iou, "parsed": box, "answer": target}


def _score_lmms_eval(text: str, record: Referred, box_format: BoxFormat) -> dict[str, Any]:
    box, target = published_boxes.parse_lmms_eval(text), record.box(box_format)
    found = box or _NOWHERE
    iou = box_replies.overlap(target, found)
    center = ((found[0] + found[2]) / 2, (found[1] + found[3]) / 2)
    inside = target[0] <= center[0] <= target[2] and target[1] <= center[1] <= target[3]
    return {"score": float(iou >= 0.5), "iou": iou, "center_inside": inside, "parsed": box, "answer": target}


_RULES = {
    "ans": {"xtuner": _score_xtuner},
    "pred_text": {"llava_hr": _score_llava_hr, "lmms_eval": _score_lmms_eval},
}
"""Rules for the form of a reply, by its key on a prediction line."""


def _score(
    annotations: Sequence[Referred], lines: Sequence[Line | None], field: str, rule: str, box_format: BoxFormat
) -> Rule:
    samples = []
    for record, line in zip(annotations, lines, strict=True):
        sample = _RULES[field][rule](joining.reply_text((line or {}).get(field)), record, box_format)
        if line is None:
            sample |= {name: type(sample[name])() for name in ("score", "iou", "center_inside") if name in sample}
        samples.append({"id": record.id, **sample})
    metrics = {"accuracy": mean_score(samples), "n_malformed": sum(sample["parsed"] is None for sample in samples)}
    if rule == "lmms_eval":
        overlaps = [sample["iou"] for sample in samples]
        metrics["IoU"] = mean(overlaps)
        metrics |= {f"ACC@{least}": mean(iou >= least for iou in overlaps) for least in _LMMS_THRESHOLDS}
        metrics["Center_ACC"] = mean(sample["center_inside"] for sample in samples)
    return metrics, samples


def _score_box_text(
    annotations: Sequence[Referred], lines: Sequence[Line | None], box_format: BoxFormat, text: "BoxText | None"
) -> Rule:
    """Replies as ``BoxText`` reads them; lines of XTuner's form have percent of the original picture."""
    import numpy as np  # other benchmarks are scored without it

    from mg_llava.data.text.coordinates import BoxText
    from mg_llava.evaluation.scoring.grounding import compare_boxes, grounding_rule, read_reply

    samples = []
    for record, line in zip(annotations, lines, strict=True):
        given = line or {}
        writing = text or (BoxText("int100", "original") if "ans" in given else BoxText("unit3", box_format))
        reply = joining.reply_text(given.get("ans", given.get("pred_text")))
        # Where the file has fractions, they are of the frame that replies are in.
        size = None if record.fractions is not None else record.size
        found = read_reply(reply, size, writing)
        target = np.array([record.box("original")])
        shares_of = writing.frame if size is None else "original"
        samples.append({"id": record.id, **compare_boxes(found, target), "frame": shares_of})
    return grounding_rule(samples, [record.picture or record.id for record in annotations])


def _referred(line: Any, where: str, number: int) -> Referred:
    if not isinstance(line, dict):
        raise ValueError(f"{where}: expected a sentence with a box, found {type(line).__name__}")
    sentence = next(
        (str(line[name]) for name in ("sents", "sent", "sentence", "text", "question") if name in line), ""
    )
    own = next((str(line[name]) for name in ("id", "question_id", "img_id") if name in line), str(number - 1))
    picture = str(line.get("image", ""))
    key = own
    if "img_id" in line:
        parts = str(line["img_id"]).split("_")
        name = parts[-2] if len(parts) > 1 else parts[0]
        picture = picture or f"{name}.jpg"
        key = str(line.get("id", f"{name}-{sentence}"))
    size = _size(line, where)
    if "ans" in line:
        xywh, fractions = None, _four(line["ans"], where)
    else:
        xywh, fractions = _four(take(line, "bbox", where), where), None
        if size is None:
            raise ValueError(f"{where}: a box in pixels needs the picture's height and width")
    return Referred(key, (own, str(number - 1)), sentence, picture, xywh, size, fractions)


def _size(line: Line, where: str) -> tuple[int, int] | None:
    width = line.get("width", line.get("image_width"))
    height = line.get("height", line.get("image_height"))
    try:
        return (int(width), int(height)) if width and height else None
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: width and height are {width!r} and {height!r}, expected pixels") from error


def _four(value: Any, where: str) -> published_boxes.Box:
    if isinstance(value, str):
        value = published_boxes.parse_lmms_eval(value)
    try:
        x1, y1, x2, y2 = map(float, value)
        if not all(map(math.isfinite, (x1, y1, x2, y2))):
            raise ValueError("not finite")
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: the box is {value!r}, expected four numbers") from error
    return x1, y1, x2, y2


def _with_form(line: Line) -> Line:
    if "ans" in line or "pred_text" in line:
        return line
    text = joining.reply_text(next((line[name] for name in ("text", "prediction", "response") if name in line), None))
    return {**line, "pred_text" if published_boxes.is_in_brackets(text) else "ans": text}


_PROMPTS = {
    "llava": "Please provide the bounding box coordinate of the region this sentence describes: {}",
    "xtuner": "[refer] give me the location of {}\n" + IMAGE_PLACEHOLDER,
    "regions": "Where is this in the picture: {}? Answer with one box.",
}
_SPLITS = {"refcoco": ("val", "testA", "testB"), "refcoco+": ("val", "testA", "testB"), "refcocog": ("val", "test")}


REFCOCO_ADVICE = (
    "a JSON list with img_id, sents, bbox [x, y, w, h], height, width as {file} (or a LLaVA-style jsonl), made of the "
    "REFER annotations (https://github.com/lichengunc/refer; RefCOCOg: the umd split); COCO train2014 pictures "
    f"({COCO}train2014.zip) to coco/train2014"
)
"""How to get the data of a split."""


def _release(name: str, split: str) -> Release:
    file = f"refcoco/{name}_{split}.json"
    caution = f"not in MG-LLaVA's paper; lmms-lab's {name} is another split of the same name"
    label = f"{name}_{split.lower()}"
    return Release(label, (file,), "coco/train2014", REFCOCO_ADVICE.format(file=file), label, caution)


def as_box_text(text: "BoxText | Mapping[str, Any] | None") -> "BoxText | None":
    """A way to write boxes, of its settings where those are given."""
    from mg_llava.data.text.coordinates import BoxText

    return None if text is None else BoxText.build(text)


def find_coco_picture(folder: str, picture: str) -> str:
    """The name that a picture of COCO has in a folder, with or without its prefix."""
    from mg_llava.data.pictures.places import is_there, place_of

    spellings = (picture, f"COCO_train2014_{picture}", picture.removeprefix("COCO_train2014_"))
    return next((name for name in spellings if is_there(place_of(folder, name))), picture)


@BENCHMARKS.register
class RefCOCO(Benchmark):
    """RefCOCO, RefCOCO+ or RefCOCOg from XTuner's JSON or a LLaVA-style jsonl.

    MG-LLaVA's authors have no such evaluation. Prompt, frame and rule chosen here: the prompt of the LLaVA-1.5 mixture
    that the model is trained on, fractions of the original picture, and an overlap of at least 0.5.

    Args:
        box_format: Whether the model's fractions are of the ``original`` or of the ``padded`` picture; by default
            padded for the prompt ``regions``.
        text: How the model writes boxes, a ``BoxText`` or its settings; None for the form of the prompt and, for
            ``regions``, for what the model was trained with.
        **arguments: As of ``Benchmark``. Prompt ``llava`` asks for ``[x1, y1, x2, y2]``; ``xtuner``, with the picture
            behind the sentence, for ``{<x1><y1><x2><y2>}``; ``regions`` as synthesized records do.
    """

    scorer = "refcoco"
    form = 'JSON list or jsonl; lines {"id", "ans"} or {"id", "pred_text"}'
    load, rate = staticmethod(load_refcoco), staticmethod(score_refcoco)
    releases = tuple(_release(name, split) for name, splits in _SPLITS.items() for split in splits)
    prompts = tuple(_PROMPTS)
    id_field = "id"

    def __init__(
        self,
        *args: Any,
        box_format: BoxFormat | None = None,
        text: "BoxText | Mapping[str, Any] | None" = None,
        **arguments: Any,
    ) -> None:
        from mg_llava.data.text.coordinates import BoxText

        super().__init__(*args, **arguments)
        is_ours = self.prompt == "regions" or text is not None
        self.is_open = is_ours and text is None
        self.text = as_box_text(text) or (BoxText(frame=box_format or "padded") if is_ours else None)
        self.box_format = box_format or ("original" if self.text is None else self.text.frame)
        self.text_field = "ans" if self.prompt == "xtuner" else "pred_text"  # type: ignore[misc]
        rule = "box_text" if is_ours else "xtuner" if self.prompt == "xtuner" else "lmms_eval"
        self.headline = (rule, "accuracy")  # type: ignore[misc]

    def use_box_text(self, writing: "BoxText") -> None:
        """See ``Benchmark``; shares of published rules are of the same frame."""
        super().use_box_text(writing)
        if self.is_open:
            self.box_format = writing.frame

    def questions(self) -> Sequence[Question]:
        """All sentences."""
        return [self._question(record) for record in load_refcoco(self.data)]

    def score(self, predictions: Lines, **options: Any) -> ScoreResult:
        """As of ``Benchmark``, with the class's ``box_format`` and ``text``."""
        return super().score(predictions, **{"box_format": self.box_format, "text": self.text, **options})

    def _question(self, record: Referred) -> Question:
        text, picture = _PROMPTS[self.prompt].format(record.sentence), record.picture
        name = find_coco_picture(self.picture_folder(), picture)
        asked = self.ask(record.id, text, name, owner=f"sentence {record.id!r}", box_key=picture)
        return replace(asked, picture_key=picture)
