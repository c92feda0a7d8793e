"""Pairs of encoders: a low-resolution tower and a high-resolution tower whose grids agree."""

from mg_llava.models import CLIPEncoder, OpenCLIPConvNeXtEncoder

# 336 / 14 = 768 / 32 = 24 tokens a side
clip_l_336_convnext_l_768 = dict(
    low_res_encoder=dict(type=CLIPEncoder, path="openai/clip-vit-large-patch14-336"),
    high_res_encoder=dict(
        type=OpenCLIPConvNeXtEncoder,
        path="./checkpoints/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
        image_size=768,
    ),
    image_size=768,
    visual_tokens=576,
)

# 56 / 7 = 256 / 32 = 8 tokens a side
nano = dict(
    low_res_encoder=dict(type=CLIPEncoder, path="data/nano/clip"),
    high_res_encoder=dict(type=OpenCLIPConvNeXtEncoder, path="data/nano/convnext", image_size=256),
    image_size=256,
    visual_tokens=64,
)
