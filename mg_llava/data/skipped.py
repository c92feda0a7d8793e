"""Samples that training cannot use: skipped or refused as the policies say, and counted across worker processes."""

import logging
from collections.abc import Mapping
from typing import Literal

import torch
from mmengine.logging import print_log

from mg_llava.data.pictures.files import PictureError
from mg_llava.data.text.budget import BudgetError
from mg_llava.data.text.conversation import NoLabelError

BadSample = Literal["error", "skip"]

FAULTS: dict[str, type[ValueError]] = {"bad_image": PictureError, "no_label": NoLabelError, "over_budget": BudgetError}
"""What can be wrong with a sample, by the name of its policy."""

_LOGGED = 20
_LOGGED_EVERY = 100


class SkippedSamples:
    """Which of ``count`` records were found bad, and why; shared by the worker processes of one training process.

    Args:
        count: Number of records.
        policies: For each name of ``FAULTS``, ``error`` or ``skip``.
        limit: Number of different records that may be skipped before the run stops.
        source: Name of the data, for messages.

    Raises:
        ValueError: A policy is unknown.
    """

    def __init__(self, count: int, policies: Mapping[str, BadSample], limit: int, source: str) -> None:
        for name in FAULTS:
            if policies[name] not in ("error", "skip"):
                raise ValueError(f"{name} is {policies[name]!r}; allowed: 'error', 'skip'")
        self.policies = dict(policies)
        self.limit = limit
        self.source = source
        # 0 for good, else 1 + the number of the fault
        self._codes = torch.zeros(count, dtype=torch.uint8).share_memory_()

    def __contains__(self, position: int) -> bool:
        return bool(self._codes[position])

    def __len__(self) -> int:
        return int(torch.count_nonzero(self._codes))

    def counts(self) -> dict[str, int]:
        """Number of records skipped so far, for each kind of fault."""
        found = torch.bincount(self._codes.long(), minlength=len(FAULTS) + 1).tolist()
        return dict(zip(FAULTS, found[1:], strict=True))

    def first(self, count: int) -> list[int]:
        """Places of the first ``count`` records skipped so far."""
        return self._codes.nonzero().flatten()[:count].tolist()

    def add(self, position: int, error: ValueError) -> None:
        """Note a bad record.

        Raises:
            ValueError: ``error`` itself, where the policy is ``error``.
            RuntimeError: More records than the limit are bad.
        """
        number, name = next((n, name) for n, (name, kind) in enumerate(FAULTS.items(), 1) if isinstance(error, kind))
        if self.policies[name] == "error":
            raise error
        self._codes[position] = number
        count = len(self)
        message = f"skipped {count} samples so far, now: {error}"
        if count > self.limit:
            raise RuntimeError(
                f"{self.source}: more than max_bad_samples={self.limit}; {message}; find them all with "
                "tools/check_data.py, or raise max_bad_samples"
            ) from error
        if count <= _LOGGED or count % _LOGGED_EVERY == 0:
            print_log(f"{self.source}: {message}", logger="current", level=logging.WARNING)
