"""Checks training data before a training does: records, text, pictures, boxes, coordinates, evaluation pictures."""

from .check import Options, check_config, check_dataset
from .findings import KINDS, Found
from .report import Report
from .sources import ConfigError

__all__ = ["KINDS", "ConfigError", "Found", "Options", "Report", "check_config", "check_dataset"]
