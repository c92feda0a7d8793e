"""The paper's two stages of the video model: 8 frames with all their tokens, cropped as in the reference; and clips of
the miniature, of 3 frames."""

from mmengine.config import read_base

with read_base():
    from .data.nano import nano_root, nano_stage2
    from .data.paper import video_stage1, video_stage2
    from .llms import nano as nano_llm
    from .llms import vicuna_7b
    from .nano import nano_instruct, nano_settings
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


def nano_clips(folder="videos", frames=3, **changes):
    """Stage 2 of the miniature with clips beside its pictures, half of an epoch of these; of ``clips_llm`` both read.

    ``folder`` is ``"videos"``, or ``"middle"`` for the middle frame alone.
    """
    root = nano_root + "clips/"
    clips = dict(name="clips", data_path=root + "train.json", image_folder=root + folder)
    # no boxes: their tokens would stand between the frames, whose number a token's place says
    boxes = dict(box_augmentation=None)
    data = dict(sources=[dict(nano_stage2, name="instructions", draw=dict(repeat=0.5)), dict(clips, boxes=boxes)])
    llm = {**nano_llm, "llm_name_or_path": nano_root + "clips_llm"}
    model = dict(picture=dict(empty_box="none", video=dict(frames=frames)))
    return nano_instruct(llm, **{"data": data, "context_length": 512, "model": model, **changes})
