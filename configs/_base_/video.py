"""The paper's two stages of the video model: 8 frames with all their tokens, cropped as in the reference."""

from mmengine.config import read_base

with read_base():
    from .data.paper import video_stage1, video_stage2
    from .llms import vicuna_7b
    from .paper import paper_instruct, paper_pretrain

# 8 x 576 tokens, boxes and text; fewer with model=dict(frame_pooler=FramePooling). With batch_tokens=16384 a batch has
# as many samples as fit into that number of tokens: three videos, or dozens of pictures
_frames = dict(picture=dict(video=dict(frames=8, pad_to_square=False)))
_shared = dict(llm=vicuna_7b, context_length=8192, model=_frames)


def video_pretrain(**settings):
    """Stage 1 on 8 GPUs: 256 samples a step."""
    return paper_pretrain(**{**_shared, "gpus": 8, "accumulative_counts": 8, "data": video_stage1, **settings})


def video_instruct(**settings):
    """Stage 2 on 16 GPUs: 128 samples a step."""
    own = dict(gpus=16, accumulative_counts=4, stage1="mg_llava_vicuna7b_pretrain_video", data=video_stage2)
    return paper_instruct(**{**_shared, **own, **settings})
