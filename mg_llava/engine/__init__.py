"""Around the training loop: hooks, exact resume, launching without a GPU."""

from mg_llava.engine.features import FeatureCacheHook
from mg_llava.engine.generation import SampleGenerationHook
from mg_llava.engine.hooks import DataReportHook, GateMonitorHook, ThroughputHook
from mg_llava.engine.resume import RandomStateHook, TrainLoop
from mg_llava.engine.schedulers import WarmupLR

__all__ = [
    "DataReportHook",
    "FeatureCacheHook",
    "GateMonitorHook",
    "RandomStateHook",
    "SampleGenerationHook",
    "ThroughputHook",
    "TrainLoop",
    "WarmupLR",
]
