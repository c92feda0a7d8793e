"""Where boxes come from."""

from mg_llava.detection.proposals import ConnectedComponentProposals, Proposals

__all__ = ["ConnectedComponentProposals", "Proposals"]
