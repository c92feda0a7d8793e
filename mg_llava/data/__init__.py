"""Records, pictures and boxes: everything between the files and the batch that the model takes.

Registered classes and functions are attributes of this package, so that configs need not know their files.
"""

from mg_llava.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS, TRANSFORMS, exports

__getattr__ = exports(__name__, DATASETS, TRANSFORMS, FUNCTIONS, DATA_SAMPLERS)
