"""Records, pictures and boxes of the miniature; ``data/nano/make_data.py`` makes them."""

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
