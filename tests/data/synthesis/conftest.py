"""All sources, as small as they can be."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mg_llava.data.synthesis.detected import BoxFileReader
from mg_llava.data.synthesis.flickr30k import Flickr30kReader
from mg_llava.data.synthesis.refer import CocoReader, RefCOCOReader
from mg_llava.data.synthesis.run import Synthesis
from mg_llava.data.synthesis.visual_genome import VisualGenomeReader
from tests.data.synthesis import toys


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    train2014 = folder / "images" / "train2014"
    toys.write_refcoco(folder / "refcoco", train2014)
    # picture 5 is for training here and a test picture there
    toys.write_refcoco(folder / "refcocog", train2014, [2, 6, 7, 5], "refs(umd).p")
    toys.write_visual_genome(folder / "vg", folder / "images" / "vg", coco_id=8)
    toys.write_flickr30k(folder / "flickr30k", folder / "images" / "flickr30k")
    toys.write_coco(folder / "coco" / "instances_train2017.json", folder / "images" / "train2017")
    planted = train2014 / f"COCO_train2014_{4:012d}.jpg"
    (folder / "images" / "own").mkdir()
    toys.write_boxes(folder / "own", folder / "images" / "own", planted)
    return folder


@pytest.fixture(scope="session")
def build(sources: Path) -> Callable[..., Synthesis]:
    """A run over all sources."""
    images = sources / "images"

    def make(out: Path, **options: object) -> Synthesis:
        readers = [
            RefCOCOReader(sources / "refcoco", images / "train2014"),
            RefCOCOReader(sources / "refcocog", images / "train2014"),
            VisualGenomeReader(sources / "vg", images / "vg"),
            Flickr30kReader(sources / "flickr30k", images / "flickr30k"),
            CocoReader(sources / "coco" / "instances_train2017.json", images / "train2017"),
            BoxFileReader(sources / "own" / "boxes.json", sources / "own" / "records.json", images / "own"),
        ]
        return Synthesis(readers, out, images, **options)

    return make
