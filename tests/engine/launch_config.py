"""New-style config of a run of the toy model; the lines below "launch" are what a real config needs as well."""

from mmengine.dataset import DefaultSampler
from mmengine.hooks import (
    DistSamplerSeedHook,
    IterTimerHook,
    LoggerHook,
    ParamSchedulerHook,
)
from mmengine.optim import CosineAnnealingLR, OptimWrapper
from torch.optim import AdamW

from mg_llava.engine.checkpoints import SafeCheckpointHook
from mg_llava.engine.hooks import DataReportHook, GateMonitorHook, ThroughputHook
from mg_llava.engine.losses import LossHook
from mg_llava.engine.resume import RandomStateHook, TrainLoop
from tests.engine.launch_toy import ToyData, ToyModel, toy_collate

model = dict(type=ToyModel)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(type=ToyData),
    sampler=dict(type=DefaultSampler, shuffle=True),
    collate_fn=dict(type=toy_collate),
)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-2, fused=True), clip_grad=dict(max_norm=1.0))
param_scheduler = [dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=False, begin=0, end=5)]
train_cfg = dict(type=TrainLoop, max_iters=5)
default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, log_metric_by_epoch=False, interval=1),
    param_scheduler=dict(type=ParamSchedulerHook),
    runtime_info=dict(type=LossHook),
    checkpoint=dict(type=SafeCheckpointHook, by_epoch=False, interval=2, save_optimizer=True),
    sampler_seed=dict(type=DistSamplerSeedHook),
)
custom_hooks = [
    dict(type=RandomStateHook),
    dict(type=GateMonitorHook, interval=1),
    dict(type=ThroughputHook, interval=1),
    dict(type=DataReportHook),
]
log_processor = dict(by_epoch=False, window_size=1)
randomness = dict(seed=0, deterministic=False)
log_level = "INFO"
visualizer = None
load_from = None
resume = False

# launch
custom_imports = dict(imports=["mg_llava.cpu_launch"], allow_failed_imports=False)
__import__("mg_llava.cpu_launch")
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
model_wrapper_cfg = dict(
    type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False, find_unused_parameters=False
)
