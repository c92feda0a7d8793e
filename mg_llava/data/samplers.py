"""Samplers: batches of similar length and, as far as can be, of one modality."""

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import ConcatDataset, Sampler

from mg_llava.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class LengthGroupedSampler(Sampler):
    """XTuner's grouping by length and modality, for any mix of data, in one process or many.

    The order comes from XTuner's function and equals that of its sampler. That sampler itself is not used, because it
    cannot read the lengths of nested concatenations, and fails on a length of zero or an empty data set without
    saying why. The order depends on ``seed`` and epoch alone, and mmengine's loops skip what was trained already on
    resume; set ``randomness=dict(seed=...)`` in the config for an exact resume, as each run draws a seed otherwise.

    Args:
        dataset: Data set with the attribute ``length_property``, or a concatenation of such.
        per_device_batch_size: Samples per process and step, gradient accumulation included.
        length_property: Attribute that lists the lengths: positive with pictures, negative without.
        mega_batch_mult: Batches that are sorted together; chosen by the size of the data set where None.
        seed: The same in all processes; drawn and shared where None.
        round_up: Repeat samples so that every process gets equally many.

    Raises:
        ValueError: The data set is empty or lists another number of lengths than it has samples.
        TypeError: The data set has no such attribute.
    """

    def __init__(
        self,
        dataset: Any,
        per_device_batch_size: int,
        length_property: str = "modality_length",
        mega_batch_mult: int | None = None,
        seed: int | None = None,
        round_up: bool = True,
    ) -> None:
        self.rank, self.world_size = get_dist_info()
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        self.round_up = round_up
        self.lengths = [length or 1 for length in _lengths_of(dataset, length_property)]
        if not self.lengths or len(self.lengths) != len(dataset):
            raise ValueError(f"the data set has {len(dataset)} samples and {len(self.lengths)} lengths; it needs some")
        total_batch = per_device_batch_size * self.world_size
        if mega_batch_mult is None:
            mega_batch_mult = max(1, min(len(self.lengths) // (total_batch * 4), 50))
        self.group_size = mega_batch_mult * total_batch
        steps = -(-len(self.lengths) // total_batch)
        self.total_size = steps * total_batch if round_up else len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Indices for this process in this epoch."""
        order = self._order()
        repeated = order * (self.total_size // len(order) + 1)
        return iter(repeated[self.rank : self.total_size : self.world_size])

    def __len__(self) -> int:
        return len(range(self.rank, self.total_size, self.world_size))

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of another epoch."""
        self.epoch = epoch

    def _order(self) -> list[int]:
        """Indices of the whole data set, the same in all processes."""
        import torch
        from xtuner.dataset.samplers.length_grouped import get_length_grouped_indices

        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch)
        return get_length_grouped_indices(self.lengths, self.group_size, generator=generator)


def _lengths_of(dataset: Any, length_property: str) -> Sequence[int]:
    if isinstance(dataset, ConcatDataset):
        return [length for part in dataset.datasets for length in _lengths_of(part, length_property)]
    if not hasattr(dataset, length_property):
        raise TypeError(
            f"{type(dataset).__name__} has no {length_property!r}; grouping by length needs the lengths there"
        )
    return list(getattr(dataset, length_property))
