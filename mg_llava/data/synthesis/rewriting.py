"""Other words for the texts of objects, by a language model behind any endpoint; what is not usable stays as it is."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

from mg_llava.data.synthesis.scenes import MOST_WORDS
from mg_llava.work.journal import Journal, read_journal

REQUEST = (
    "Write the following description of an object in a photo in other words. Keep its meaning, add nothing, leave "
    "nothing out that tells the object from others. Answer with the new description alone, in one line.\n\n{text}"
)
_AHEAD = 64


@dataclass(frozen=True)
class Rewriter:
    """How texts are rewritten.

    Attributes:
        ask: Gives the reply to a request; None where it is refused.
        name: Of the model, for the report.
        share: Share of the texts.
        workers: Requests under way at once.
    """

    ask: Callable[[str], str | None]
    name: str
    share: float = 0.2
    workers: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share of texts to rewrite is {self.share}, must lie in 0..1")

    def chosen(self, texts: Iterable[str], seed: int) -> list[str]:
        """The texts to rewrite, the same for a seed."""
        return [text for text in sorted(set(texts)) if Random(f"{seed}/rewrite/{text}").random() < self.share]


def rewrite_texts(
    rewriter: Rewriter,
    texts: Iterable[str],
    journal: str | Path,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[dict[str, str], Mapping[str, int]]:
    """New words for texts, and counts of what came of all of them; texts of the journal are not asked about again."""
    wanted = list(texts)
    known: dict[str, str | None] = dict(record.value for record in read_journal(journal))
    missing = [text for text in wanted if text not in known]
    with Journal(journal) as file, ThreadPoolExecutor(rewriter.workers) as pool:
        for start in range(0, len(missing), _AHEAD):
            some = missing[start : start + _AHEAD]
            replies = list(pool.map(rewriter.ask, [REQUEST.format(text=text) for text in some]))
            file.append([[text, reply] for text, reply in zip(some, replies, strict=True)])
            known |= dict(zip(some, replies, strict=True))
            if progress is not None:
                progress(len(wanted) - len(missing) + start + len(some), len(wanted))
    counts: Counter[str] = Counter()
    words: dict[str, str] = {}
    for text in wanted:
        reply, reason = usable(text, known[text])
        counts[reason] += 1
        if reply:
            words[text] = reply
    return words, dict(sorted(counts.items()))


def usable(text: str, reply: str | None) -> tuple[str, str]:
    """New words of a reply, empty where it has none, and a word for the count."""
    if reply is None:
        return "", "refused"
    line = reply.strip().strip('"').rstrip(".")
    if not line or "\n" in line or any(mark in line for mark in "<>[]{}"):
        return "", "not one plain line"
    if len(line.split()) > MOST_WORDS:
        return "", f"more than {MOST_WORDS} words"
    return ("", "unchanged") if line.lower() == text.lower() else (line, "rewritten")
