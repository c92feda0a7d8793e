"""Pairs of encoders: a low-resolution tower and a high-resolution tower whose grids agree.

Pictures are made in the ``image_size`` of the high-resolution tower.
"""

from mg_llava.models import CLIPEncoder, OpenCLIPConvNeXtEncoder, TimmEncoder, TimmTokenEncoder, TransformerDetector

# 336 / 14 = 768 / 32 = 24 tokens a side
clip_l_336_convnext_l_768 = dict(
    low_res_encoder=dict(type=CLIPEncoder, path="openai/clip-vit-large-patch14-336"),
    high_res_encoder=dict(
        type=OpenCLIPConvNeXtEncoder,
        path="./checkpoints/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
        image_size=768,
    ),
)

# 384 / 14 = 864 / 32 = 27 tokens a side
siglip_so400m_384_convnext_l_864 = dict(
    low_res_encoder=dict(type=CLIPEncoder, path="google/siglip-so400m-patch14-384"),
    high_res_encoder=dict(
        type=OpenCLIPConvNeXtEncoder,
        path="./checkpoints/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
        image_size=864,
    ),
)

# the high-resolution tower four times as large; box features have 5760 channels
clip_l_336_convnext_xxl_768 = dict(
    low_res_encoder=dict(type=CLIPEncoder, path="openai/clip-vit-large-patch14-336"),
    high_res_encoder=dict(
        type=OpenCLIPConvNeXtEncoder,
        path="./checkpoints/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup",
        image_size=768,
    ),
)

# any timm backbone whose last stride is 32; timm's own weights, from the hub
clip_l_336_resnet50_768 = dict(
    low_res_encoder=dict(type=CLIPEncoder, path="openai/clip-vit-large-patch14-336"),
    high_res_encoder=dict(type=TimmEncoder, name="resnet50", image_size=768, pretrained=True),
)

# names of COCO's 80 classes
coco80 = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, "
    "laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, "
    "scissors, teddy bear, hair drier, toothbrush"
).split(", ")

# Lyrics: 257 tokens of EVA ViT-g without its last block, as BLIP-2 reads it, and 100 objects of Grounding DINO
eva_g_grounding_dino = dict(
    image_size=800,
    visual_encoder=dict(
        type=TimmTokenEncoder,
        name="eva_giant_patch14_clip_224",
        checkpoint="./checkpoints/eva_giant_patch14_clip_224.safetensors",
        depth=39,
    ),
    detector=dict(
        type=TransformerDetector,
        path="IDEA-Research/grounding-dino-tiny",
        image_size=800,
        classes=coco80,
    ),
)

# 56 / 7 = 256 / 32 = 8 tokens a side
nano = dict(
    low_res_encoder=dict(type=CLIPEncoder, path="data/nano/clip"),
    high_res_encoder=dict(type=OpenCLIPConvNeXtEncoder, path="data/nano/convnext", image_size=256),
)
