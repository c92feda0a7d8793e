"""The paper's training sets; edit ``data_root``, or give ``--cfg-options train_dataloader.dataset.data_root=FOLDER``.

Paths of records, pictures and boxes are relative to it. The published box files have one record for each picture of
a stage, so that all sources of a stage share one; convert them once (``tools/convert_boxes.py``) and name the stores.
"""

data_root = "./data/mg_llava/"

_stage1_boxes = "bbox_json/train/pretrain_blip_allava_1266k_only_box.json"
_stage2_boxes = "bbox_json/train/instruct_llava_allava_doc_dvqa_share_ai2d_1383k_only_box.json"

# 558K captions of LAION-CC-SBU, 708K of ALLaVA-4V-Caption
stage1 = dict(
    data_root=data_root,
    published_samples=1_266_000,
    sources=[
        dict(
            name="llava_pretrain_558k",
            data_path="train_json/blip_laion_cc_sbu_558k.json",
            image_folder="images/LLaVA-Pretrain/images",
            box_path=_stage1_boxes,
        ),
        dict(
            name="allava_caption_laion",
            data_path="train_json/ALLaVA-Caption-LAION-4V.json",
            image_folder="images",
            box_path=_stage1_boxes,
        ),
        dict(
            name="allava_caption_vflan",
            data_path="train_json/ALLaVA-Caption-VFLAN-4V.json",
            image_folder="images",
            box_path=_stage1_boxes,
        ),
    ],
)

# 665K instructions of LLaVA-1.5 (text alone among them), 692K of ALLaVA-4V-Instruction, 25K of ShareGPT4V, DocVQA,
# DVQA and AI2D
stage2 = dict(
    data_root=data_root,
    published_samples=1_383_000,
    sources=[
        dict(
            name="llava_665k",
            data_path="train_json/llava_v1_5_mix665k.json",
            image_folder="images",
            box_path=_stage2_boxes,
        ),
        dict(
            name="allava_instruct_laion",
            data_path="train_json/ALLaVA-Instruct-LAION-4V.json",
            image_folder="images",
            box_path=_stage2_boxes,
        ),
        dict(
            name="allava_instruct_vflan",
            data_path="train_json/ALLaVA-Instruct-VFLAN-4V.json",
            image_folder="images",
            box_path=_stage2_boxes,
        ),
        dict(
            name="documents_25k",
            data_path="train_json/doc_dvqa_share_ai2d_25k.json",
            image_folder="images",
            box_path=_stage2_boxes,
        ),
    ],
)

# the same records merged into one file for each stage, as they were published with the reference
stage1_merged = dict(
    data_root=data_root,
    published_samples=1_266_000,
    data_path="train_json/pretrain_blip_allava_1266k.json",
    image_folder="images",
    box_path=_stage1_boxes,
)
stage2_merged = dict(
    data_root=data_root,
    published_samples=1_383_000,
    data_path="train_json/instruct_llava_allava_doc_dvqa_share_ai2d_1383k.json",
    image_folder="images",
    box_path=_stage2_boxes,
)

# LLaVA-1.5's records alone, as in the ablations of the paper
llava15_stage1 = dict(data_root=data_root, published_samples=558_000, **stage1["sources"][0])
llava15_stage2 = dict(data_root=data_root, published_samples=665_000, **stage2["sources"][0])

# with boxes that tools/generate_boxes.py finds by the names of COCO's 80 classes in place of tags: --tagger coco80
llava15_stage1_coco80 = dict(llava15_stage1, box_path="boxes/llava15_stage1_coco80.safetensors")
llava15_stage2_coco80 = dict(llava15_stage2, box_path="boxes/llava15_stage2_coco80.safetensors")

# the paper's video model: Video-LLaVA's records of pictures and videos (558K and 703K, then 665K and 100K); boxes of
# 8 frames of each video come from tools/generate_boxes.py --frames 8
video_stage1 = dict(
    data_root=data_root,
    published_samples=1_261_000,
    data_path="train_json/valley_llavaimage.json",
    image_folder="videos",
    box_path="boxes/video_stage1.safetensors",
)
video_stage2 = dict(
    data_root=data_root,
    published_samples=765_000,
    data_path="train_json/videochatgpt_llavaimage_tune.json",
    image_folder="videos",
    box_path="boxes/video_stage2.safetensors",
)
