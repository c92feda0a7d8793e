"""Settings that every run has in common."""

# Several processes on a machine without CUDA; does nothing elsewhere. mmengine reads `custom_imports` in dumped
# configs alone, and the line below it in this one.
custom_imports = dict(imports=["mg_llava.cpu_launch"], allow_failed_imports=False)
__import__("mg_llava.cpu_launch")
model_wrapper_cfg = dict(
    type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False, find_unused_parameters=False
)

default_scope = "mmengine"
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
visualizer = None
log_level = "INFO"
log_processor = dict(by_epoch=False)
load_from = None
resume = False
