"""Rows of the paper's Tables 4 and 5, and named variants of them, for Vicuna-7B and for the miniature."""

from mmengine.config import read_base

from mg_llava.models import (
    BoxesIntoPicture,
    ChannelConcatFusion,
    ConvGateFusion,
    ConvolvedConcatFusion,
    GatedConcatFusion,
    LastStagePatchInfoMiningFusion,
    PatchInfoMiningFusion,
    PictureIntoBoxes,
    ResamplerFusion,
    ResamplerProjector,
    RoIAlignBoxProjector,
    StageSumBoxProjector,
)

with read_base():
    from .data.paper import llava15_stage1, llava15_stage1_coco80, llava15_stage2, llava15_stage2_coco80
    from .llms import vicuna_7b
    from .nano import nano_instruct, nano_pretrain
    from .paper import paper_instruct, paper_pretrain

# arguments of `mg_llava`; Conv-Gate, box features of all stages and tokens of boxes after the picture's are defaults
rows = dict(
    full=dict(),
    # Table 4: components
    low_only=dict(fusion=None, box_projector=None),
    objects=dict(fusion=None),
    convgate=dict(box_projector=None),
    # Table 5: fusion
    channel_concat=dict(fusion=ChannelConcatFusion),
    patch_info_mining=dict(fusion=PatchInfoMiningFusion),
    resampler=dict(fusion=ResamplerFusion, projector=ResamplerProjector),
    # Table 5: merging of objects
    boxes_into_picture=dict(merger=BoxesIntoPicture, picture=dict(empty_box="none")),  # which stays as it is
    picture_into_boxes=dict(merger=PictureIntoBoxes),
    # Table 5: tags
    coco80=dict(),
    # further fusions and box features of the reference; the merger as the paper, not the code, has it
    convolved_concat=dict(fusion=ConvolvedConcatFusion),
    gated_concat=dict(fusion=GatedConcatFusion),
    patch_info_mining_last=dict(fusion=LastStagePatchInfoMiningFusion),
    picture_into_boxes_fused=dict(merger=dict(type=PictureIntoBoxes, source="fused")),
    last_stage_boxes=dict(box_projector=dict(type=RoIAlignBoxProjector, stages=[-1], bins=7)),
    stage_sum_boxes=dict(box_projector=StageSumBoxProjector),
    # gates of Conv-Gate that are not one for a picture
    gate_per_token=dict(fusion=dict(type=ConvGateFusion, gate_per="token")),
    gate_per_channel=dict(fusion=dict(type=ConvGateFusion, gate_per="channel")),
)


def nano_ablation(stage, row):
    """A stage (``"pretrain"`` or ``"instruct"``) of a row in miniature."""
    if stage == "pretrain":
        return nano_pretrain(model=rows[row])
    return nano_instruct(stage1=f"mg_llava_nano_pretrain_{row}", model=rows[row])


def vicuna7b_ablation(stage, row):
    """A stage of a row for Vicuna-7B on 8 GPUs, with LLaVA-1.5's records as in the paper."""
    own = row == "coco80"
    if stage == "pretrain":
        data = llava15_stage1_coco80 if own else llava15_stage1
        return paper_pretrain(vicuna_7b, gpus=8, data=data, model=rows[row])
    data, stage1 = llava15_stage2_coco80 if own else llava15_stage2, f"mg_llava_vicuna7b_pretrain_{row}"
    return paper_instruct(vicuna_7b, gpus=8, stage1=stage1, data=data, model=rows[row])
