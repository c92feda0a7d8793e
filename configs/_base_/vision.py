"""Pairs of encoders: a low-resolution tower and a high-resolution tower whose grids agree.

Pictures are made in the ``image_size`` of the high-resolution tower.
"""

from mg_llava.models import CLIPEncoder, OpenCLIPConvNeXtEncoder, TimmEncoder

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

# 56 / 7 = 256 / 32 = 8 tokens a side
nano = dict(
    low_res_encoder=dict(type=CLIPEncoder, path="data/nano/clip"),
    high_res_encoder=dict(type=OpenCLIPConvNeXtEncoder, path="data/nano/convnext", image_size=256),
)
