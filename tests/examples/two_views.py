"""A system of two encoders whose tokens the LLM reads one after the other; no objects, no fusion.

Shapes: N canvases, P tokens of both encoders together, C channels of a token, D hidden size of the LLM.
"""

import torch

from mg_llava.batch import TokenCount
from mg_llava.models.interfaces import Looked, Part, Segment
from mg_llava.models.parts import raise_together, spec_of
from mg_llava.models.system import System
from mg_llava.registry import MODELS

FIRST, SECOND = "first_encoder", "second_encoder"


@MODELS.register_module()
class TwoViews(System):
    """Tokens of two encoders of equal width, through one projector."""

    parts = (
        Part(FIRST, FIRST, "encoder"),
        Part(SECOND, SECOND, "encoder"),
        Part("llm", "llm", "llm"),
        Part("projector", "projector", "connector"),
    )

    def __init__(self, llm, first_encoder, second_encoder, projector, **options):
        super().__init__(**options)
        first, second = spec_of(FIRST, first_encoder).channels, spec_of(SECOND, second_encoder).channels
        if first != second:
            raise_together([f"{FIRST} has {first} channels and {SECOND} {second}; use encoders of one width"])
        self.add(FIRST, first_encoder)
        self.add(SECOND, second_encoder)
        hidden = self.add_llm(llm)
        self.add("projector", projector, in_channels=first, out_channels=hidden)
        self.complete()

    @property
    def token_count(self):
        """Tokens of both encoders."""
        return TokenCount(self.first_encoder.spec.tokens + self.second_encoder.spec.tokens, per_box=0)

    def look(self, canvas, boxes):
        """See :meth:`System.look`."""
        return Looked({FIRST: self.first_encoder(canvas), SECOND: self.second_encoder(canvas)})

    def connect(self, looked, counts):
        """See :meth:`System.connect`."""
        tokens = torch.cat([looked.seen[FIRST].tokens, looked.seen[SECOND].tokens], dim=1)  # (N, P, C)
        return [[Segment("visual", item)] for item in self.projector(tokens.to(self.connector.dtype))]  # (P, D) each
