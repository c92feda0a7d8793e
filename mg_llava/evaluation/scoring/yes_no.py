"""How the published scripts read yes or no out of a reply, and what they count."""

from collections.abc import Sequence
from dataclasses import dataclass

from mg_llava.evaluation.scoring.answers import strip_punctuation
from mg_llava.evaluation.scoring.figures import share

UNKNOWN = "Unknown"
_NEGATIONS = ("No", "not", "no")
_PREFIX = 4


def reference_yes_no(reply: str) -> str:
    """MG-LLaVA's and VLMEvalKit's reading: ``Yes`` or ``No`` if one of the words occurs and the other does not.

    Returns:
        ``Yes``, ``No`` or ``Unknown``.
    """
    words = strip_punctuation(reply.lower()).split()
    if ("yes" in words) == ("no" in words):
        return UNKNOWN
    return "Yes" if "yes" in words else "No"


def pope_yes_no(reply: str) -> str:
    """POPE's reading: ``no`` if the first sentence has the word No, no or not, else ``yes``, whatever it says.

    Words are split at single spaces, so ``NO``, ``nope``, an empty reply and ``No`` before a line break are yes.
    """
    words = reply.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in words for word in _NEGATIONS) else "yes"


def mme_yes_no(reply: str) -> str:
    """MME's reading: ``yes``, else ``no``, if it occurs in the first four characters in any case, else ``other``.

    So ``Not sure`` and ``none`` are no, and ``The answer is yes.`` is other.
    """
    beginning = reply.lower()[:_PREFIX]
    if "yes" in beginning:
        return "yes"
    return "no" if "no" in beginning else "other"


def read_label(answer: object, where: str) -> bool:
    """Whether yes is right; raises ``ValueError`` that begins with ``where`` for anything but yes and no."""
    value = str(answer).strip().lower()
    if value not in ("yes", "no"):
        raise ValueError(f"{where} {answer!r}, expected yes or no")
    return value == "yes"


@dataclass(frozen=True)
class Confusion:
    """Counts of predictions of yes (positive) and no against labels."""

    tp: int
    fp: int
    tn: int
    fn: int

    @classmethod
    def of(cls, predicted: Sequence[bool], labels: Sequence[bool]) -> "Confusion":
        """Count pairs; True is yes."""
        pairs = list(zip(predicted, labels, strict=True))
        return cls(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, False), (False, True))))

    @property
    def counts(self) -> dict[str, int]:
        """The counts by their usual names."""
        return {"TP": self.tp, "FP": self.fp, "TN": self.tn, "FN": self.fn}

    @property
    def figures(self) -> dict[str, float]:
        """Accuracy, precision, recall and F1; 0 where the scripts divide by zero."""
        accuracy = share(self.tp + self.tn, self.tp + self.fp + self.tn + self.fn)
        precision, recall = share(self.tp, self.tp + self.fp), share(self.tp, self.tp + self.fn)
        f1 = share(2 * precision * recall, precision + recall)
        return {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}

    @property
    def undefined(self) -> list[str]:
        """Figures whose denominator is zero, on which the scripts fail."""
        denominators = {"precision": self.tp + self.fp, "recall": self.tp + self.fn, "f1": self.tp}
        return [name for name, count in denominators.items() if not count]
