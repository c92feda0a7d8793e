"""CIDEr and METEOR of short descriptions, by pycocoevalcap; METEOR and the usual tokens need Java."""

import contextlib
import io
import re
import shutil
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from mg_llava.evaluation.scoring.joining import Joined, ScoreResult
from mg_llava.evaluation.statistics import bootstrap_mean

_PUNCTUATION = re.compile(r"[^\w\s'-]|(?<!\w)['-]|['-](?!\w)")


class CaptionScores(NamedTuple):
    """Scores of texts.

    Attributes:
        cider: Of all texts, as published: 1 is 100 %.
        ciders: Of each of them.
        meteor: Of all texts; None where it was not computed.
        meteors: Of each of them; empty where they were not computed.
        warnings: What was not computed, and how to have it.
    """

    cider: float
    ciders: list[float]
    meteor: float | None
    meteors: list[float]
    warnings: list[str]


def score_captions(texts: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score n texts against one or several references each.

    Raises:
        ValueError: pycocoevalcap is not installed.
    """
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise ValueError("CIDEr needs pycocoevalcap: pip install 'mg_llava[eval]'") from error
    has_java = shutil.which("java") is not None
    split = _split_like_treebank if has_java else _split_plainly
    replies = split([[text] for text in texts])
    truth = split(references)
    warnings = []
    with contextlib.redirect_stdout(io.StringIO()):
        cider, ciders = Cider().compute_score(truth, replies)
    meteor, meteors = None, list[float]()
    if has_java:
        from pycocoevalcap.meteor.meteor import Meteor

        meteor, meteors = Meteor().compute_score(truth, replies)
    else:
        warnings.append(
            f"METEOR of {len(texts)} texts was not computed: there is no Java; install a Java runtime and score again"
            ". CIDEr is of plain tokens instead of the Penn Treebank's, which need Java too"
        )
    return CaptionScores(float(cider), [float(one) for one in ciders], meteor, meteors, warnings)


def rate_captions(
    joined: Joined, ids: Sequence[Any], references: Sequence[Sequence[str]], pictures: Sequence[Hashable]
) -> ScoreResult:
    """The result of texts that were joined with their ids.

    Args:
        joined: The texts.
        ids: Of each text.
        references: Of each text.
        pictures: That each text is about; those of one picture are not independent.
    """
    scores = score_captions(joined.texts, references)
    samples: list[dict[str, Any]] = [
        {"id": own, "score": cider, "text": text, "references": list(known)}
        for own, text, cider, known in zip(ids, joined.texts, scores.ciders, references, strict=True)
    ]
    for sample, meteor in zip(samples, scores.meteors, strict=False):  # empty without Java
        sample["METEOR"] = meteor
    interval = bootstrap_mean(scores.ciders, pictures)
    metrics = {"CIDEr": scores.cider, "CIDEr/low": interval.low, "CIDEr/high": interval.high, "METEOR": scores.meteor}
    not_computed = {} if scores.meteors else {"METEOR": len(samples)}
    return joined.result({"official": (metrics, samples)}, scores.warnings, not_computed=not_computed)


def _split_plainly(texts: Sequence[Sequence[str]]) -> dict[int, list[str]]:
    """Texts in lower case without punctuation."""
    return {
        number: [" ".join(_PUNCTUATION.sub(" ", text.lower()).split()) for text in own]
        for number, own in enumerate(texts)
    }


def _split_like_treebank(texts: Sequence[Sequence[str]]) -> dict[int, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    asked: dict[int, list[dict[str, Any]]] = {
        number: [{"caption": " ".join(text.split())} for text in own] for number, own in enumerate(texts)
    }
    with contextlib.redirect_stderr(io.StringIO()):
        return PTBTokenizer().tokenize(asked)
