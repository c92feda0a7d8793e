"""Samplers: batches of similar length, and as far as can be of one modality, or within a number of tokens."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_dist_info, sync_random_seed
from torch.utils.data import ConcatDataset, Sampler

from mg_llava.registry import DATA_SAMPLERS

_CHUNK = 1 << 16


@DATA_SAMPLERS.register_module()
class LengthGroupedSampler(Sampler):
    """XTuner's grouping by length and modality, for any mix of data, in one process or many.

    The order equals that of XTuner's sampler. That one is not used, because it takes minutes and gigabytes for ten
    million samples, cannot read the lengths of nested concatenations, and fails on a length of zero or an empty data
    set without saying why. The order depends on ``seed`` and epoch alone, and mmengine's loops skip what was trained
    already on resume; set ``randomness=dict(seed=...)`` in the config for an exact resume, as each run draws a seed
    otherwise.

    Args:
        dataset: Data set with the attribute ``length_property``, or a concatenation of such.
        per_device_batch_size: Samples per process and step, gradient accumulation included.
        length_property: Attribute that lists the lengths: positive with pictures, negative without.
        mega_batch_mult: Batches that are sorted together; chosen by the size of the data set where None.
        seed: The same in all processes; drawn and shared where None.
        round_up: Repeat samples so that every process gets equally many.

    Raises:
        RuntimeError: The processes see different lengths.
        TypeError: The data set has no such attribute.
        ValueError: The data set is empty or lists another number of lengths than it has samples.
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
        self.lengths = sample_lengths(dataset, length_property)
        count = len(self.lengths)
        if not count or count != len(dataset):
            raise ValueError(f"the data set has {len(dataset)} samples and {count} lengths; it needs some")
        self.lengths[self.lengths == 0] = 1
        self._check_all_see_the_same()
        total_batch = per_device_batch_size * self.world_size
        if mega_batch_mult is None:
            mega_batch_mult = max(1, min(count // (total_batch * 4), 50))
        self.group_size = mega_batch_mult * total_batch
        steps = -(-count // total_batch)
        self.total_size = steps * total_batch if round_up else count

    def __iter__(self) -> Iterator[int]:
        """Indices for this process in this epoch."""
        return self._own_part(self._order())

    def _own_part(self, order: np.ndarray) -> Iterator[int]:
        for start in range(self.rank, self.total_size, _CHUNK * self.world_size):
            places = np.arange(start, min(start + _CHUNK * self.world_size, self.total_size), self.world_size)
            yield from order[places % len(order)].tolist()

    def __len__(self) -> int:
        return len(range(self.rank, self.total_size, self.world_size))

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of another epoch."""
        self.epoch = epoch

    def _order(self) -> np.ndarray:
        """(N,) int64 indices of the whole data set, the same in all processes."""
        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch)
        return group_by_length(self.lengths, self.group_size, generator)

    def _check_all_see_the_same(self) -> None:
        """Processes that order other lengths would train some samples twice and others never."""
        digests = all_gather_object(hashlib.blake2b(self.lengths.tobytes(), digest_size=8).hexdigest())
        if len(set(digests)) > 1:
            other = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
            raise RuntimeError(
                f"process {other} sees other lengths of the samples than process 0; give all nodes the same data "
                "files and one token_cache folder that all of them see"
            )


@DATA_SAMPLERS.register_module()
class TokenBatchSampler(Sampler[list[int]]):
    """Samples of similar length in batches whose number of samples times the longest of them stays within a limit.

    So a video of thousands of tokens stands alone, and short texts come by the dozen, mixed with pictures of their
    length. Every epoch cuts the same number of batches, on which schedules rely: samples change places with those of
    their own length alone, and batches with all others. Processes take turns; where their number does not divide that
    of the batches, some batches are repeated, so that all have equally many.

    Args:
        sampler: Knows lengths, seed, epoch and process; its own order is not used.
        batch_size: Most samples of a batch.
        tokens: Most tokens of a batch, padded.

    Raises:
        TypeError: The sampler does not know lengths.
        ValueError: A sample is longer than the limit.
    """

    def __init__(self, sampler: Any, batch_size: int, tokens: int) -> None:
        if not hasattr(sampler, "lengths"):
            raise TypeError(
                f"{type(sampler).__name__} knows no lengths, by which batches of {tokens} tokens are made; use "
                "LengthGroupedSampler"
            )
        self.sampler, self.batch_size, self.tokens = sampler, batch_size, tokens
        self._costs = np.abs(sampler.lengths)
        longest = int(self._costs.argmax())
        if self._costs[longest] > tokens:
            raise ValueError(
                f"sample {longest} has {self._costs[longest]} tokens, a batch at most {tokens}; raise the limit, or "
                "lower context_length, frames or boxes"
            )
        self._ends = self._cut(np.sort(self._costs)[::-1])
        self.skipped = 0
        """Batches that the next pass leaves out, for a run that resumes."""

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of this process in this epoch."""
        random = np.random.default_rng((self.sampler.seed, self.sampler.epoch))
        mixed = random.permutation(len(self._costs))
        order = mixed[np.argsort(-self._costs[mixed], kind="stable")]
        batches = np.split(order, self._ends[:-1])
        turns = np.resize(random.permutation(len(batches)), len(self) * self.sampler.world_size)
        skipped, self.skipped = self.skipped, 0
        for place in turns[self.sampler.rank :: self.sampler.world_size][skipped:]:
            yield batches[place].tolist()

    def __len__(self) -> int:
        """Batches of each process."""
        return -(-len(self._ends) // self.sampler.world_size)

    def _cut(self, costs: np.ndarray) -> list[int]:
        """Where batches of descending costs end."""
        ends = []
        begin = 0
        while begin < len(costs):
            begin += min(self.batch_size, self.tokens // int(costs[begin]))
            ends.append(min(begin, len(costs)))
        return ends


def group_by_length(lengths: np.ndarray, group_size: int, generator: torch.Generator) -> np.ndarray:
    """The order of XTuner's ``get_length_grouped_indices``, from arrays: (N,) int64.

    Groups of one modality are sorted from long to short and mixed; what is left of both comes last; the longest
    sample of all comes first.

    Args:
        lengths: (N,) int64, positive with pictures, negative without, none of them zero.
        group_size: Samples of a group.
        generator: Draws the order of samples and of groups.
    """
    if (lengths > 0).all() or (lengths < 0).all():
        order = _sorted_groups(lengths, group_size, generator)
        ends = np.append(np.arange(group_size, len(order), group_size), len(order))
    else:
        places = [np.flatnonzero(lengths > 0), np.flatnonzero(lengths < 0)]
        parts = [own[_sorted_groups(np.abs(lengths[own]), group_size, generator)] for own in places]
        whole = [part[: (len(part) - 1) // group_size * group_size] for part in parts]
        groups = np.concatenate(whole).reshape(-1, group_size)
        groups = groups[torch.randperm(len(groups), generator=generator).numpy()]
        rest = np.concatenate([part[len(own) :] for part, own in zip(parts, whole, strict=True)])
        rest = rest[np.argsort(-np.abs(lengths[rest]), kind="stable")]
        order = np.concatenate([groups.reshape(-1), rest])
        ends = np.append(np.arange(1, len(groups) + 1) * group_size, len(order))
    firsts = np.concatenate([[0], ends[:-1]])
    longest = firsts[int(torch.argmax(torch.from_numpy(np.abs(lengths[order[firsts]]))))]
    order[[0, longest]] = order[[longest, 0]]
    return order


def _sorted_groups(lengths: np.ndarray, group_size: int, generator: torch.Generator) -> np.ndarray:
    """(N,) int64 drawn order, in which each group goes from long to short."""
    drawn = torch.randperm(len(lengths), generator=generator).numpy()
    return drawn[np.lexsort((-lengths[drawn], np.arange(len(drawn)) // group_size))]


def sample_lengths(dataset: Any, length_property: str = "modality_length") -> np.ndarray:
    """(N,) int64 lengths of the samples of a data set, from its array of them where it has one.

    Raises:
        TypeError: The data set has no such property.
    """
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([sample_lengths(part, length_property) for part in dataset.datasets])
    if length_property == "modality_length" and hasattr(dataset, "modality_lengths"):
        return dataset.modality_lengths().astype(np.int64)
    if not hasattr(dataset, length_property):
        raise TypeError(
            f"{type(dataset).__name__} has no {length_property!r}; grouping by length needs the lengths there"
        )
    return np.array(getattr(dataset, length_property), dtype=np.int64)
