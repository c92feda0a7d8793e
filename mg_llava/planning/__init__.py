"""Needs and cost of a training run, found without weights, data or a GPU."""

from mg_llava.planning.plan import Plan, make_plan
from mg_llava.planning.skeleton import Skeleton, build_skeleton

__all__ = ["Plan", "Skeleton", "build_skeleton", "make_plan"]
