"""Names of detected objects, chosen by a detector and an LLM together: what fits the names to the left of each.

The LLM reads a prompt that lists the objects. A name counts by its probability under the detector and, with a weight,
by that of its words at its place under the LLM. A beam of lists is kept.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from mg_llava.data.choices import wrong_count
from mg_llava.data.records.schema import BoxRecord
from mg_llava.data.text.perception import PerceptionPrompt

Likelihood = Callable[[Sequence[str]], list[float]]
"""Log-probabilities of texts under an LLM."""


@dataclass(frozen=True)
class Naming:
    """How an LLM names objects.

    Args:
        weight: Of the LLM's log-probability beside the detector's.
        beam: Number of lists that are kept.
        candidates: Number of names of an object that are tried, those that the detector finds likeliest.
        threshold: Least probability that there is an object; others keep their names and are not listed.

    Raises:
        ValueError: A setting is out of its range.
    """

    weight: float = 1.0
    beam: int = 5
    candidates: int = 5
    threshold: float = 0.3

    def __post_init__(self) -> None:
        wrong = [*wrong_count("beam", self.beam), *wrong_count("candidates", self.candidates)]
        if not 0 <= self.weight < math.inf or not 0 <= self.threshold <= 1:
            wrong.append(f"weight is {self.weight}, threshold {self.threshold}; they must be from 0 on, and in 0..1")
        if wrong:
            raise ValueError("; ".join(wrong))


def name_objects(
    naming: Naming,
    listed: tuple[BoxRecord, tuple[int, int]],
    probabilities: tuple[Tensor, Tensor, Sequence[str]],
    prompt: PerceptionPrompt,
    likelihood: Likelihood,
) -> tuple[tuple[str, ...], np.ndarray]:
    """New names of K objects, and ``(K,)`` float64 how sure they are.

    A name is as sure as the lists of the beam that agree with it, by their share of the probability; 1 where an object
    keeps its name.

    Args:
        naming: How they are chosen.
        listed: The objects, original pixels, with the detector's names; width and height of the picture.
        probabilities: ``(K, classes)`` of names, ``(K,)`` of being there, and the names.
        prompt: How objects are listed; its threshold and cap are not used.
        likelihood: Of texts.
    """
    record, size = listed
    likely, there, classes = probabilities
    everything = replace(prompt, threshold=0.0, most=max(1, len(record)), sure=None)
    order = [int(number) for number in everything.select(replace(record, scores=there.double().cpu().numpy()))]
    order = [number for number in order if float(there[number]) >= naming.threshold]
    # a list of names so far, the detector's log-probability of them, and both together
    beams: list[tuple[tuple[str, ...], float, float]] = [((), 0.0, 0.0)]
    for step, number in enumerate(order):
        best = likely[number].topk(min(naming.candidates, len(classes)))
        options = [
            ((*names, classes[choice]), own + math.log(max(share, 1e-12)))
            for names, own, _ in beams
            for share, choice in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        boxes = record.boxes[order[: step + 1]]
        texts = [everything.list_objects(boxes, names, size) for names, _ in options]
        told = likelihood(texts) if naming.weight else [0.0] * len(texts)
        scored = [(*option, option[1] + naming.weight * own) for option, own in zip(options, told, strict=True)]
        beams = sorted(scored, key=lambda one: -one[2])[: naming.beam]
    labels, sure = list(record.labels), np.ones(len(record))
    shares = np.exp([total - beams[0][2] for _, _, total in beams])
    for place, number in enumerate(order):
        agree = [names[place] == beams[0][0][place] for names, _, _ in beams]
        labels[number], sure[number] = beams[0][0][place], shares[agree].sum() / shares.sum()
    return tuple(labels), sure
