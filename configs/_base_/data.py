"""Training sets: records, pictures and boxes; edit ``data_root`` to where they lie."""

data_root = "./data/mg_llava/"

# 558K LAION-CC-SBU captions and 708K of ALLaVA-4V-Caption
stage1 = dict(
    data_path=data_root + "train_json/pretrain_blip_allava_1266k.json",
    image_folder=data_root + "images",
    box_path=data_root + "bbox_json/train/pretrain_blip_allava_1266k_only_box.json",
)

# 665K of LLaVA-1.5, 692K of ALLaVA-4V-Instruction, 25K of ShareGPT4V, DocVQA, DVQA and AI2D
stage2 = dict(
    data_path=data_root + "train_json/instruct_llava_allava_doc_dvqa_share_ai2d_1383k.json",
    image_folder=data_root + "images",
    box_path=data_root + "bbox_json/train/instruct_llava_allava_doc_dvqa_share_ai2d_1383k_only_box.json",
)

nano_root = "data/nano/generated/"
nano_stage1 = dict(
    data_path=nano_root + "stage1.json",
    image_folder=nano_root + "images",
    box_path=nano_root + "stage1_boxes.json",
)
nano_stage2 = dict(
    data_path=nano_root + "stage2.json",
    image_folder=nano_root + "images",
    box_path=nano_root + "stage2_boxes.json",
)
