"""MR-MLLM (arXiv 2406.15768): what CLIP and a detector see is added to the prompts inside a frozen LLM's layers.

The paper's widths, depths and losses are not published: those here are an interpretation, around LLaMA-Adapter V2.

Shapes: N canvases, P scene tokens of C channels, K objects of C_o channels, Q prompts of a layer, D hidden size.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mg_llava.batch import TokenCount, send
from mg_llava.models.assembly import PROMPTS
from mg_llava.models.interfaces import Detected, Looked, Part, Seeing, Segment, Spec
from mg_llava.models.parts import PartOrConfig, raise_together, spec_of
from mg_llava.models.queries.refinement import Sight, join_sights, split_sights
from mg_llava.models.system import System
from mg_llava.models.vision import run_encoders
from mg_llava.registry import MODELS

SCENE, DETECTOR = "scene_encoder", "detector"
_BOX = 4


@MODELS.register_module()
class MRMLLM(System):
    """A frozen LLM with gated prompts, to which a scene branch, an object branch and shared queries are added.

    A picture takes no place in the sequence. With closed gates the LLM is the plain one.

    Args:
        llm: Causal LM.
        scene_encoder: Gives tokens of the canvas: CLIP.
        detector: Gives objects of the canvas; None leaves the object branch out.
        prompts: Gated prompts of the LLM, which say Q.
        scene: From scene tokens to prompts.
        objects: From objects to prompts; None with the detector.
        shared_queries: Reads both; None leaves them out.
        refine: Refines the detector's objects; None leaves them as they are.
        biases: Added to the linear layers of the LLM; None adds none.
        losses: As for :class:`System`; by default of the language, and of refined objects where there are any.
        **options: As for :class:`System`.

    Raises:
        ValueError: With every impossible combination of parts in one message, before weights are read.
    """

    parts = (
        Part(SCENE, "scene_encoder", "encoder"),
        Part(DETECTOR, "detector", "encoder"),
        Part("llm", "llm", "llm"),
        PROMPTS,
        Part("llm_bias", "biases", "connector"),
        Part("scene", "scene", "connector"),
        Part("objects", "objects", "connector"),
        Part("shared_queries", "shared_queries", "connector"),
        Part("refine", "refine", "connector"),
    )

    def __init__(
        self,
        llm: PartOrConfig | None,
        scene_encoder: PartOrConfig,
        prompts: PartOrConfig,
        scene: PartOrConfig,
        detector: PartOrConfig | None = None,
        objects: PartOrConfig | None = None,
        shared_queries: PartOrConfig | None = None,
        refine: PartOrConfig | None = None,
        biases: PartOrConfig | None = None,
        losses: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(losses=_losses(llm, refine) if losses is None else losses, **options)
        low, found = spec_of("scene_encoder", scene_encoder), spec_of("detector", detector)
        problems = [] if low.tokens else [f"scene_encoder is {low.type}, which gives no tokens; use CLIPEncoder"]
        if found is not None and not found.objects:
            problems.append(f"detector is {found.type}, which detects nothing; use TransformerDetector")
        if (found is None) != (objects is None):
            problems.append("detector and objects belong together; give both or neither")
        if found is None and refine is not None:
            problems.append("refine changes what a detector finds; give a detector, or leave refine out")
        if self.packing is not None:
            problems.append("prompts are added to rows, which packing would mix; set packing=None")
        raise_together(problems)
        self.add("scene_encoder", scene_encoder)
        self.add("detector", detector)
        hidden = self.add_llm(llm, prompts)
        self.add("biases", None if self.llm is None else biases, llm=self.llm)
        sizes = {"out_channels": hidden, "prompts": getattr(self.adapter, "prompts", 1)}
        channels = [low.channels] if found is None else [low.channels, found.object_channels + _BOX]
        self.add("scene", scene, in_channels=channels[0], **sizes)
        self.add("objects", objects, in_channels=channels[-1], **sizes)
        self.add("shared_queries", shared_queries, in_channels=channels, **sizes)
        self.add("refine", refine, **({} if found is None else self._sizes_of_objects(found, hidden)))
        self.complete()

    def _sizes_of_objects(self, found: Spec, hidden: int) -> dict[str, Any]:
        """Sizes that a refinement head follows."""
        return dict(
            object_channels=found.object_channels,
            query_channels=None if self.shared_queries is None else self.shared_queries.query.shape[-1],
            hidden_size=None if self.llm is None else hidden,
            logits=len(found.classes) + found.has_rest,
            has_rest=found.has_rest,
        )

    @property
    def reads_language(self) -> bool:
        """Whether objects are refined by what the LLM makes of the question."""
        return getattr(self.refine, "language", None) is not None

    @property
    def token_count(self) -> TokenCount:
        """No tokens: pictures are read inside the layers."""
        return TokenCount(per_canvas=0, per_box=0)

    def look(self, canvas: Tensor, boxes: Sequence[Tensor]) -> Looked:
        """See :meth:`System.look`; given boxes are not read, for the detector finds its own."""
        return Looked(run_encoders(self, (SCENE,) if self.detector is None else (SCENE, DETECTOR), canvas))

    def connect(self, looked: Looked, counts: Sequence[int]) -> Seeing:
        """See :meth:`System.connect`."""
        dtype = self.scene.query.dtype
        tokens = looked.seen[SCENE].tokens
        assert tokens is not None
        branches = [tokens.to(dtype)]  # (N, P, C)
        added = self.scene(branches[0])  # (N, Q, D)
        self.observe("scene", added)
        if self.detector is not None:
            found = looked.seen[DETECTOR].detected
            assert found is not None
            branches.append(torch.cat([found.states.to(dtype), found.boxes.to(dtype)], dim=-1))  # (N, K, C_o + 4)
            own = self.objects(branches[1])
            self.observe("objects", own)
            added = added + own
        shared = None
        if self.shared_queries is not None:
            shared, read = self.shared_queries(branches)
            self.observe("shared_queries", read)
            added = added + read
        sights = [None] * len(added) if self.refine is None else split_sights(looked.seen[DETECTOR].detected, shared)
        return [[Segment("prompt", item, sight)] for item, sight in zip(added, sights, strict=True)]

    def refine_objects(
        self, seeing: Seeing, states: Tensor | None, mask: Tensor | None, placeholders: Sequence[int]
    ) -> Detected:
        """The refined objects of all canvases that were seen; zeros in the shapes of one canvas without any.

        Args:
            seeing: As :meth:`see` gives it.
            states: ``(B, L, D)``, the LLM's last hidden states; None where it did not run.
            mask: ``(B, L)`` bool, true where they count.
            placeholders: Number of the placeholders of each row.
        """
        sights: list[Sight] = [segment.about for segments in seeing for segment in segments]
        rows = [row for row, count in enumerate(placeholders) for _ in range(count)] or [0] * len(seeing)
        rows = [row for row, segments in zip(rows, seeing, strict=True) for _ in segments]
        if not sights:  # every process runs the head
            shared = (
                None
                if self.shared_queries is None
                else self.scene.query.new_zeros(1, *self.shared_queries.query.shape)
            )
            sights, rows = split_sights(self.blank_looked().seen[DETECTOR].detected, shared), [0]
        if states is not None and mask is not None:
            chosen = send(torch.tensor(rows), states.device)
            states, mask = states.index_select(0, chosen), mask.index_select(0, chosen)
        return self.refine(*join_sights(sights), states, mask)

    def condition(self, rows: Sequence[Seeing]) -> AbstractContextManager[Any]:
        """See :meth:`System.condition`: the pictures of a row are added up, a row without any adds nothing."""
        found = [(row, segments) for row, seeing in enumerate(rows) for segments in seeing]
        if not found:
            return nullcontext()
        added = torch.stack([segment.tokens for _, segments in found for segment in segments])  # (M, Q, D)
        places = torch.tensor([row for row, segments in found for _ in segments])
        total = added.new_zeros(len(rows), *added.shape[1:])
        return self.adapter.adding(total.index_add(0, send(places, added.device), added))


def _losses(llm: PartOrConfig | None, refine: PartOrConfig | None) -> list[dict[str, str]]:
    """What is learned unless a config says otherwise."""
    wanted = {"mg_llava.LanguageLoss": llm, "mg_llava.RefinementLoss": refine}
    return [{"type": name} for name, part in wanted.items() if part is not None]
