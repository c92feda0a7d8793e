"""Pictures that are stored on their side or in 16 bits come out alike behind every door."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.inputs import load_picture
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.detection.proposals import ConnectedComponentProposals
from mg_llava.detection.run.sources import PictureSource, SourceReader
from mg_llava.hf.image_processing import MGLLaVAImageProcessor
from mg_llava.inference.drawing import draw_answer
from mg_llava.inference.frontend import FrontEnd
from mg_llava.inference.serving.errors import RequestLimits
from mg_llava.inference.serving.pictures import open_pictures
from mg_llava.inspection.browse.samples import view_sample
from tests.data.conftest import turns_of
from tests.evaluation.benchmark_files import write_table
from tests.settings import grouped
from tests.toy import write_tokenizer

STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    5: Image.Transpose.TRANSPOSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera stores an upright picture, by EXIF orientation."""

Door = Callable[[Path, PictureProcessor], Any]


def _as_file(path: Path, processor: PictureProcessor) -> Any:
    return processor(load_picture(path, "a")).pixels


def _as_bytes(path: Path, processor: PictureProcessor) -> Any:
    return processor(load_picture(path.read_bytes(), "a")).pixels


def _as_url(path: Path, processor: PictureProcessor) -> Any:
    url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    (image,) = open_pictures([("p", url)], RequestLimits(), ())
    return processor(load_picture(image, "a")).pixels


def _in_a_hugging_face_folder(path: Path, processor: PictureProcessor) -> Any:
    return MGLLaVAImageProcessor(**processor.to_dict())(str(path))["pixel_values"][0]


def _drawn(path: Path, processor: PictureProcessor) -> Any:
    seen = SimpleNamespace(boxes=[[2, 2, 9, 9]], labels=["a"], scores=[1.0])
    return draw_answer(path, "?", SimpleNamespace(text="a", pictures=[seen]), processor=processor)  # type: ignore


def _proposed(path: Path, processor: PictureProcessor) -> Any:
    front = FrontEnd(None, None, processor, None, ConnectedComponentProposals())  # type: ignore[arg-type]
    return front.propose(load_picture(path, "a"), "a").boxes


def _in_training(path: Path, processor: PictureProcessor, view: bool = False) -> Any:
    record = {"id": 1, "image": path.name, "conversations": turns_of("<image>", "seven")}
    file = path.with_suffix(".json")
    file.write_text(json.dumps([record]))
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(path.parent / "tokenizer"))
    settings = grouped(tokens_per_image=4)
    dataset = LLaVADataset(file, path.parent, tokenizer, "vicuna", processor, **settings)
    return view_sample(dataset, 0).pictures[0].pixels if view else dataset[0]["images"][0]


def _browsed(path: Path, processor: PictureProcessor) -> Any:
    return _in_training(path, processor, view=True)


def _in_a_box_run(path: Path, processor: PictureProcessor) -> Any:
    return _read_by_a_box_run(path, processor, PictureSource("picture", path.name, "1"))


def _in_a_table_of_a_box_run(path: Path, processor: PictureProcessor) -> Any:
    cell = base64.b64encode(path.read_bytes()).decode()
    table = write_table(path.with_suffix(".tsv"), [{"index": "1", "image": cell}])
    return _read_by_a_box_run(path, processor, PictureSource("row", str(table), "1"))


def _read_by_a_box_run(path: Path, processor: PictureProcessor, source: PictureSource) -> Any:
    (image,) = SourceReader(path.parent, 8, processor.apply_exif, False, processor.mode).open(source)
    return image


DOORS: dict[str, Door] = {
    name.lstrip("_"): door
    for name, door in list(globals().items())
    if name.startswith(("_as_", "_in_", "_drawn", "_proposed", "_browsed"))
}


def a_picture() -> Image.Image:
    """Marks on black, different in all orientations."""
    pixels = np.zeros((48, 72, 3), np.uint8)
    pixels[4:14, 5:30] = 255
    pixels[30:34, 50:60] = 200
    return Image.fromarray(pixels)


@pytest.fixture(autouse=True)
def warnings_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    logged: list[str] = []
    monkeypatch.setattr("mg_llava.data.pictures.files._warned", set())
    monkeypatch.setattr("mmengine.logging.print_log", lambda text, **_: logged.append(text))
    yield logged


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("door", DOORS)
def test_turned_pictures(door: str, orientation: int, tmp_path: Path, warnings_of: list[str]) -> None:
    """Stored upright or turned by EXIF they are the same; without the switch they are as stored, with a warning."""
    see, exif = DOORS[door], Image.Exif()
    exif[0x0112] = orientation
    stored = a_picture().transpose(STORED[orientation])
    stored.save(tmp_path / "turned.png", exif=exif)
    stored.save(tmp_path / "plain.png")
    a_picture().save(tmp_path / "upright.png")
    turning, plain = PictureProcessor(32, apply_exif=True), PictureProcessor(32)
    upright = np.asarray(see(tmp_path / "upright.png", turning))
    assert np.array_equal(see(tmp_path / "turned.png", turning), upright) and warnings_of == []
    assert not np.array_equal(see(tmp_path / "turned.png", plain), upright)
    assert len(warnings_of) == 1 and f"EXIF orientation {orientation} is not applied" in warnings_of[0]
    assert np.array_equal(see(tmp_path / "turned.png", plain), see(tmp_path / "plain.png", plain))
    assert len(warnings_of) == 1


@pytest.mark.parametrize("door", DOORS)
def test_deep_pictures(door: str, tmp_path: Path, warnings_of: list[str]) -> None:
    """In exact mode 16 bits are as 8; otherwise a warning says that they saturate."""
    gray = np.asarray(a_picture().convert("L"))
    gray = np.where(gray > 0, gray, 40).astype(np.uint16)
    Image.fromarray(gray.astype(np.uint8)).save(tmp_path / "plain.png")
    Image.fromarray(gray * 257).save(tmp_path / "deep.png")
    see, exact = DOORS[door], PictureProcessor(32, mode="exact")
    wanted = np.asarray(see(tmp_path / "plain.png", exact))
    assert np.array_equal(see(tmp_path / "deep.png", exact), wanted) and warnings_of == []
    see(tmp_path / "deep.png", PictureProcessor(32))
    assert len(warnings_of) == 1 and "saturates" in warnings_of[0]
