"""Where boxes come from: taggers, detectors, and the pipeline of both for one picture or for millions.

Registered classes and functions are attributes of this package, so that configs need not know their files.
"""

from mg_llava.registry import DETECTORS, PROPOSERS, TAGGERS, exports

__getattr__ = exports(__name__, DETECTORS, TAGGERS, PROPOSERS)
