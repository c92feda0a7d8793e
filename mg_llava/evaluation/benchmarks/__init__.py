"""The benchmarks of the registry ``BENCHMARKS``: data file -> questions with prompts; one line for each family."""

from mg_llava.evaluation.benchmarks import (
    gqa,
    judged,
    mathvista,
    mmvp,
    multiple_choice,
    refcoco,
    science_qa,
    seed,
    video_qa,
    vqa,
    yes_no,
)

__all__ = [
    "gqa",
    "judged",
    "mathvista",
    "mmvp",
    "multiple_choice",
    "refcoco",
    "science_qa",
    "seed",
    "video_qa",
    "vqa",
    "yes_no",
]
