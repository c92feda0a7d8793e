"""Checks training data before a training does: records, text, pictures, boxes, coordinates, evaluation pictures."""

from mg_llava.data.config import ConfigError
from mg_llava.inspection.doctor.check import CheckOptions, check_dataset, check_training_data
from mg_llava.inspection.doctor.findings import KINDS, Found
from mg_llava.inspection.doctor.report import CheckReport

__all__ = ["KINDS", "CheckOptions", "CheckReport", "ConfigError", "Found", "check_dataset", "check_training_data"]
