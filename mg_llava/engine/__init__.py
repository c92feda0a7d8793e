"""Around the training loop: hooks, exact resume, launching without a GPU.

Registered classes and functions are attributes of this package, so that configs need not know their files.
"""

from mg_llava.registry import HOOKS, PARAM_SCHEDULERS, exports

__getattr__ = exports(__name__, HOOKS, PARAM_SCHEDULERS)
