"""Records about regions: of TinyGroundingGPT's three stages, and of the miniature.

``tools/synthesize_regions.py`` makes the former, one folder for each stage; ``data/nano/grounding.py`` the latter.
"""

from mmengine.config import read_base

with read_base():
    from .paper import data_root, llava15_stage1, llava15_stage2

grounding_root = "data/nano/generated/grounding/"


def grounding(name, boxes=None):
    """A file of records of the miniature, with a box file where there is one."""
    files = dict(name=name, data_path=f"{grounding_root}{name}.json", image_folder=f"{grounding_root}images")
    return files if boxes is None else dict(files, box_path=f"{grounding_root}{boxes}.json")


def _regions(name):
    return dict(name=name, data_path=f"regions/{name}/regions.jsonl", image_folder="images")


_captions = dict(name="captions", data_path=llava15_stage1["data_path"], image_folder=llava15_stage1["image_folder"])
_instructions = dict(name="llava_665k", data_path=llava15_stage2["data_path"], image_folder="images")
regions_perception = dict(data_root=data_root, published_samples=658_000, sources=[_regions("perception"), _captions])
regions_local = dict(data_root=data_root, published_samples=320_000, **_regions("local"))
regions_global = dict(data_root=data_root, published_samples=765_000, sources=[_regions("global"), _instructions])
