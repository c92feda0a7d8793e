"""Training data of MR-MLLM in one format: captions, questions, referring expressions, and detection as text.

Boxes are what the detector finds, for the prompt that names them (``tools/generate_boxes.py --detector detr:PATH``).
Detection and referring expressions in COCO's pictures are written by ``tools/synthesize_regions.py`` (tasks ``list``
and ``text_to_box``); their annotated objects (``--detector coco:FILE``) teach the refinement. Paths: see ``paper.py``.
"""

from mmengine.config import read_base

with read_base():
    from .paper import data_root, stage1, stage2

_boxes = "boxes/mr_mllm.safetensors"
detection = dict(
    name="coco_detection",
    data_path="train_json/coco_detection.jsonl",
    image_folder="images/coco/train2017",
    box_path=_boxes,
    boxes=dict(targets="boxes/coco_train2017.safetensors"),
)
mr_mllm_stage1 = dict(
    data_root=data_root,
    published_samples=675_000,
    sources=[{**stage1["sources"][0], "box_path": _boxes}, detection],
)
mr_mllm_stage2 = dict(
    data_root=data_root,
    published_samples=782_000,
    sources=[{**stage2["sources"][0], "box_path": _boxes}, detection],
)
del data_root, stage1, stage2

nano_root = "data/nano/lawful/"
nano_mr_mllm_stage1, nano_mr_mllm_stage2 = (
    dict(
        data_path=f"{nano_root}{part}.json",
        image_folder=f"{nano_root}images",
        box_path=f"{nano_root}{part}_detected.json",
        boxes=dict(targets=f"{nano_root}{part}_exact.json"),
    )
    for part in ("stage1", "stage2")
)
