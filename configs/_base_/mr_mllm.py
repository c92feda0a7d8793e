"""The two stages of MR-MLLM: alignment of all that prompts the frozen LLM, then instructions and refinement."""

from mmengine.config import read_base

from mg_llava.data import PerceptionPrompt
from mg_llava.models import AddedBiases, CLIPEncoder, GatedPrompts, PromptBranch, RefinementHead, SharedQueries

with read_base():
    from .data.mr_mllm import mr_mllm_stage1, mr_mllm_stage2, nano_mr_mllm_stage1, nano_mr_mllm_stage2
    from .detectors import detr_r50
    from .detectors import nano as nano_detector
    from .llms import nano as nano_llm
    from .nano import nano_settings
    from .run import instruct, pretrain
    from .systems.mr_mllm import mr_mllm

_clip = dict(type=CLIPEncoder, path="openai/clip-vit-large-patch14-336")
_perception = dict(type=PerceptionPrompt, dropout=0.3)  # with and without it, so that answers do not rest on it alone
_instructed = dict(refine=RefinementHead, biases=AddedBiases, fresh=["refine", "biases"])


def mr_mllm_pretrain(llm, *, gpus=8, detector=detr_r50, model=None, accumulative_counts=1, **settings):
    """Stage A: captions and detection as text train prompts, branches and shared queries; batch 256."""
    system = mr_mllm(llm, _clip, detector, **{"perception": _perception, **(model or {})})
    batch = dict(batch_size=256 // (gpus * accumulative_counts), accumulative_counts=accumulative_counts)
    return pretrain(system, **{"data": mr_mllm_stage1, "lr": 1e-3, "weight_decay": 0.05, **batch, **settings})


def mr_mllm_instruct(llm, *, stage1, gpus=8, detector=detr_r50, model=None, accumulative_counts=1, **settings):
    """Stage B: instructions train the refinement and added biases as well; the LLM's own weights stay; batch 128."""
    system = mr_mllm(llm, _clip, detector, **{"perception": _perception, **_instructed, **(model or {})})
    batch = dict(batch_size=128 // (gpus * accumulative_counts), accumulative_counts=accumulative_counts)
    own = dict(data=mr_mllm_stage2, lr=2e-4, weight_decay=0.02, tuning="frozen", save_steps=1000, save_total_limit=1)
    return instruct(system, **{**own, "pretrained_pth": f"./work_dirs/{stage1}", **batch, **settings})


# the miniature: texts name digits from left to right, without coordinates, as its LLM was taught
_nano_clip = dict(type=CLIPEncoder, path="data/nano/clip")
_nano_branch = dict(type=PromptBranch, width=128, blocks=1, heads=4)
_nano_model = dict(
    prompts=dict(type=GatedPrompts, prompts=10),
    scene=_nano_branch,
    objects=_nano_branch,
    shared_queries=dict(type=SharedQueries, width=128, heads=4),
    perception=dict(type=PerceptionPrompt, text=None, order="left", dropout=0.3),
)
_nano_instructed = {**_instructed, "refine": dict(type=RefinementHead, width=128, heads=4)}


def _nano_settings(settings):
    data = {**nano_settings["dataset"], "boxes": dict(count_boxes=False)}  # of the detector, as they are
    plain = {key: value for key, value in nano_settings.items() if key not in ("evaluation", "dataset")}
    return {**plain, "dataset": data, **settings}


def nano_mr_mllm_pretrain(llm=nano_llm, *, model=None, **settings):
    """Stage A of the miniature."""
    system = mr_mllm(llm, _nano_clip, nano_detector, **{**_nano_model, **(model or {})})
    return pretrain(system, **_nano_settings({"data": nano_mr_mllm_stage1, "lr": 4e-3, **settings}))


def nano_mr_mllm_instruct(llm=nano_llm, *, stage1="mr_mllm_nano_pretrain", model=None, **settings):
    """Stage B of the miniature."""
    system = mr_mllm(llm, _nano_clip, nano_detector, **{**_nano_model, **_nano_instructed, **(model or {})})
    own = dict(data=nano_mr_mllm_stage2, lr=2e-3, tuning="frozen", pretrained_pth=f"./work_dirs/{stage1}")
    return instruct(system, **_nano_settings({**own, **settings}))
