"""The model and its parts: tensors in, tensors out.

Registered classes and functions are attributes of this package, so that configs need not know their files.
"""

from mg_llava.registry import MODELS, exports

__getattr__ = exports(__name__, MODELS)
