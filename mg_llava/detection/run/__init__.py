"""Boxes for many pictures: planned tasks for any engine, and append-only results that a kill cannot harm."""

from mg_llava.detection.run.engines import make_engine
from mg_llava.detection.run.job import BoxJob
from mg_llava.detection.run.merge import Incomplete, Results, merge, write_reference
from mg_llava.detection.run.report import format_report
from mg_llava.detection.run.settings import JobSettings
from mg_llava.detection.run.visualize import visualize

__all__ = [
    "BoxJob",
    "Incomplete",
    "JobSettings",
    "Results",
    "format_report",
    "make_engine",
    "merge",
    "visualize",
    "write_reference",
]
