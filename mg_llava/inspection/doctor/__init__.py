"""Checks training data before a training does: records, text, pictures, boxes, coordinates, evaluation pictures."""

from mg_llava.data.config import ConfigError
from mg_llava.inspection.doctor.check import Options, check_config, check_dataset
from mg_llava.inspection.doctor.findings import KINDS, Found
from mg_llava.inspection.doctor.report import Report

__all__ = ["KINDS", "ConfigError", "Found", "Options", "Report", "check_config", "check_dataset"]
