"""Detections of a model on annotated pictures, raw and refined, clean and shifted: scores, box files, drawings."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mg_llava.data.pictures.files import open_picture, picture_path
from mg_llava.data.records.schema import BoxRecord
from mg_llava.drawing.boxes import MARGIN, PAPER, draw_boxes
from mg_llava.evaluation.detection.coco import compare_detections, open_instances, score_detections
from mg_llava.evaluation.detection.shifts import Shift
from mg_llava.inference.objects import FoundObjects, ObjectFinder
from mg_llava.work.atomic import write_json

RAW = "raw"
_COMPARED = ("AP", "AP50")

FoundByArm = dict[str, dict[int, BoxRecord]]
"""By name of an arm, and by id of the picture."""


def evaluate_objects(
    finders: Mapping[str, ObjectFinder],
    instances: str,
    images: str,
    out: Path,
    shifts: Sequence[Shift] = (Shift(),),
    limit: int | None = None,
    draws: int = 200,
    show: int = 0,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Score the raw and the refined objects of pictures.

    Args:
        finders: By name of the arm, such as ``head``.
        instances: File of COCO's annotations.
        images: Folder of their pictures.
        out: Folder for ``results.json``, a box file of each arm and shift, and drawings.
        shifts: Copies of the pictures.
        limit: Look at the first pictures alone; None for all.
        draws: Bootstrap samples of the differences; none are reported with 0.
        show: Draw raw and refined objects of so many pictures side by side.
        progress: Called with a line for each arm of each shift.

    Returns:
        For each shift and arm COCO's twelve numbers, and what each arm gains over the raw objects.
    """
    truth = open_instances(instances)
    pictures = [truth.imgs[number] for number in sorted(truth.imgs)[:limit]]
    results: dict[str, Any] = {}
    for shift in shifts:
        found = _find(finders, pictures, images, shift, out, show)
        scored = {arm: score_detections(truth, records) for arm, records in found.items()}
        results[str(shift)] = {arm: {"numbers": one.numbers} for arm, one in scored.items()}
        for arm, one in scored.items():
            _write_boxes(out / f"{arm}_{shift}.json".replace(":", "_"), found[arm], pictures)
            if arm != RAW and draws:
                gains = {name: compare_detections(scored[RAW], one, name, draws).to_dict() for name in _COMPARED}
                results[str(shift)][arm]["gain"] = gains
            progress(f"{shift} {arm}: AP {one.numbers['AP']:.3f}, AP50 {one.numbers['AP50']:.3f}")
    write_json(out / "results.json", results)
    return results


def _find(
    finders: Mapping[str, ObjectFinder],
    pictures: Iterable[Mapping[str, Any]],
    folder: str,
    shift: Shift,
    out: Path,
    show: int,
) -> FoundByArm:
    """The objects of all pictures, by each arm."""
    found: FoundByArm = {RAW: {}, **{arm: {} for arm in finders}}
    for picture in pictures:
        number, name = picture["id"], picture["file_name"]
        image = shift(open_picture(picture_path(folder, name, f"picture {number}"), name).convert("RGB"), number)
        for arm, finder in finders.items():
            both = finder(image)
            found[RAW][number], found[arm][number] = both
            if len(found[RAW]) <= show:
                draw_side_by_side(image, both).save(_drawing(out, arm, shift, name))
    return found


def draw_refined(finders: Mapping[str, ObjectFinder], file: Path, out: Path, shifts: Sequence[Shift]) -> None:
    """Draw raw and refined objects of a picture side by side, a file for each arm and shift."""
    for shift in shifts:
        image = shift(open_picture(str(file), f"picture {file}").convert("RGB"))
        for arm, finder in finders.items():
            draw_side_by_side(image, finder(image)).save(_drawing(out, arm, shift, file.name))


def _drawing(out: Path, arm: str, shift: Shift, name: str) -> Path:
    return out / f"{arm}_{shift}_{Path(name).stem}.png".replace(":", "_")


def draw_side_by_side(image: Image.Image, both: FoundObjects, threshold: float = 0.3) -> Image.Image:
    """Raw objects on the left, refined ones on the right, without those whose score is below the threshold."""
    drawn = []
    for record in both:
        kept = [number for number, score in enumerate(record.scores.tolist()) if score >= threshold]
        labels, scores = [record.labels[number] for number in kept], record.scores[kept].tolist()
        drawn.append(draw_boxes(image, record.boxes[kept], labels, scores))
    sheet = Image.new("RGB", (sum(one.width for one in drawn) + MARGIN, drawn[0].height), PAPER)
    sheet.paste(drawn[0], (0, 0))
    sheet.paste(drawn[1], (drawn[0].width + MARGIN, 0))
    return sheet


def _write_boxes(file: Path, records: Mapping[int, BoxRecord], pictures: Sequence[Mapping[str, Any]]) -> None:
    """A box file by the stems of the pictures' files."""
    names = {picture["id"]: Path(picture["file_name"]).stem for picture in pictures}
    content = [
        {
            "id": names[number],
            "boxes": one.boxes.tolist(),
            "scores": one.scores.tolist(),
            "labels": list(one.labels),
        }
        for number, one in records.items()
    ]
    write_json(file, content, None)
