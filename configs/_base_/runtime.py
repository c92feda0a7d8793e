"""What every run has in common."""

# multi-process runs on a machine without CUDA; does nothing elsewhere
custom_imports = dict(imports=["mg_llava.engine.cpu_launch"], allow_failed_imports=False)

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
