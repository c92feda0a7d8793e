"""What the first stage of Lyrics has learned: retrieval, matches of hard pairs, and what it fills into items.

Shapes: N pictures with a text each, Q queries, T word pieces.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mg_llava.data.collate import collate
from mg_llava.models.losses.grounding import SpatialLoss
from mg_llava.models.queries.heads import similarity
from mg_llava.models.queries.mq_former import Source
from mg_llava.pieces import PieceKind, Pieces, WordPieces

RANKS = (1, 5, 10)
"""A text is retrieved where its picture is among so many, and the other way round."""


@torch.no_grad()
def measure_grounding(
    system: Any, dataset: Any, count: int = 100, batch_size: int = 20, rounds: int = 4, seed: int = 0
) -> dict[str, Any]:
    """Shares of what is right, of pictures that training has not seen.

    Args:
        system: A :class:`mg_llava.models.systems.lyrics_pretrain.LyricsPretrain`.
        dataset: Its samples, of one picture each.
        count: N, the first pictures, among which each is retrieved.
        batch_size: Pictures at a time.
        rounds: How often items are masked anew.
        seed: Of what is masked.

    Returns:
        ``pictures``, N; for texts ``with_items`` and ``without_items`` recalls at 1, 5 and 10 of pictures and texts,
        and ``match``, the share of right decisions about true pairs, and texts and pictures with the nearest wrong
        one; ``masked`` with the shares of names and coordinates that are filled in exactly, and of coordinates within
        a step.

    Raises:
        ValueError: There are fewer than two pictures.
    """
    system.eval()
    batches = list(_batches(system, dataset, count, batch_size))
    if sum(len(pieces.ids) for _, pieces in batches) < 2:
        raise ValueError("fewer than two pictures with texts; there is nothing to be told apart")
    found: dict[str, Any] = {"pictures": sum(len(pieces.ids) for _, pieces in batches)}
    for name, items in (("with_items", True), ("without_items", False)):
        found[name] = _tell_apart(system, [(s, p if items else p.without_items()) for s, p in batches])
    found["masked"] = _fill_in(system, batches, rounds, seed)
    return found


def recalls(similarities: Tensor) -> dict[str, float]:
    """Recall at each rank, of ``(N, N)`` similarities of pictures (rows) to texts, of which row and column belong."""
    found: dict[str, float] = {}
    own = similarities.diagonal()
    for name, rivals in (("text", similarities > own[:, None]), ("picture", similarities.T > own[:, None])):
        ranks = rivals.sum(dim=1)
        found |= {f"{name}_recall_{rank}": float((ranks < rank).float().mean()) for rank in RANKS}
    return found


def _batches(system: Any, dataset: Any, count: int, size: int) -> Iterator[tuple[list[Source], Pieces]]:
    """Sources and texts of the first pictures."""
    for first in range(0, min(count, len(dataset)), size):
        samples = [dataset.load(number) for number in range(first, min(first + size, count, len(dataset)))]
        data = system.data_preprocessor(collate(samples), False)["data"]
        if seeing := system.see(data):
            grounded = system.grounded(data, seeing)
            yield grounded.sources, grounded.pieces


def _tell_apart(system: Any, batches: Sequence[tuple[list[Source], Pieces]]) -> dict[str, float]:
    """Recalls, and decisions about each pair and its nearest wrong ones."""
    former, heads = system.mq_former, system.heads
    queries = torch.cat([heads.embed_queries(former(sources)[0]) for sources, _ in batches])
    texts = torch.cat([heads.embed_text(former.read(pieces)) for _, pieces in batches])
    similarities = similarity(queries, texts)
    others = similarities.masked_fill(torch.eye(len(texts), dtype=torch.bool, device=texts.device), -torch.inf)
    own = torch.arange(len(texts))
    wrong = {"text": others.argmax(dim=1).cpu(), "picture": others.argmax(dim=0).cpu()}
    pairs = [(own, own, 1), (own, wrong["text"], 0), (wrong["picture"], own, 0)]
    right = [_decide(system, batches, pictures, chosen) == label for pictures, chosen, label in pairs]
    return {**recalls(similarities), "match": float(torch.cat(right).float().mean())}


def _decide(system: Any, batches: Sequence[tuple[list[Source], Pieces]], pictures: Tensor, texts: Tensor) -> Tensor:
    """``(N,)`` int64: 1 where a picture and a text are taken for a match."""
    places = [(batch, row) for batch, (_, pieces) in enumerate(batches) for row in range(len(pieces.ids))]
    found = []
    for picture, text in zip(pictures.tolist(), texts.tolist(), strict=True):
        (batch, row), (other, line) = places[picture], places[text]
        sources = [source.take(torch.tensor([row])) for source in batches[batch][0]]
        queries, _ = system.mq_former(sources, batches[other][1].map(lambda part, line=line: part[line : line + 1]))
        found.append(system.heads.match(queries).argmax(dim=1))
    return torch.cat(found).cpu()


def _fill_in(
    system: Any, batches: Sequence[tuple[list[Source], Pieces]], rounds: int, seed: int
) -> dict[str, float | int]:
    """What is filled into masked items: exact names and coordinates, coordinates within a step, and how many."""
    words, loss = system.pieces.words, SpatialLoss()
    counts = dict.fromkeys(("names", "name_exact", "coordinates", "coordinate_exact", "coordinate_near"), 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for sources, pieces in list(batches) * rounds:
            masked = loss.mask(pieces)
            ids = torch.where(masked, words.id_of("[MASK]"), pieces.ids)
            _, read = system.mq_former(sources, pieces._replace(ids=ids), sees="queries")
            for kind, given, right in _parts(pieces, masked, system.heads.write(read).argmax(dim=-1)):
                is_name = kind == PieceKind.NAME
                counts["names" if is_name else "coordinates"] += 1
                counts["name_exact" if is_name else "coordinate_exact"] += given == right
                counts["coordinate_near"] += not is_name and is_near(words, given, right)
    shares: dict[str, float | int] = {"names": counts["names"], "coordinates": counts["coordinates"]}
    for name, total in (
        ("name_exact", "names"),
        ("coordinate_exact", "coordinates"),
        ("coordinate_near", "coordinates"),
    ):
        shares[name] = counts[name] / max(1, counts[total])
    return shares


def _parts(pieces: Pieces, masked: Tensor, written: Tensor) -> Iterator[tuple[int, list[int], list[int]]]:
    """Kind, written and right ids of each masked part."""
    for row in range(len(pieces.ids)):
        for part in pieces.parts[row][masked[row]].unique().tolist():
            own = pieces.parts[row] == part
            yield int(pieces.kinds[row][own][0]), written[row][own].tolist(), pieces.ids[row][own].tolist()


def is_near(words: WordPieces, given: Sequence[int], right: Sequence[int]) -> bool:
    """Whether a coordinate is within a step of the right one: one in its last decimal."""
    texts = ["".join(words.words[number].removeprefix("##") for number in ids) for ids in (given, right)]
    try:
        values = [float(text) for text in texts]
    except ValueError:
        return False
    step = 10.0 ** -len(texts[1].partition(".")[2])
    return abs(values[0] - values[1]) <= step * (1 + 1e-6)
