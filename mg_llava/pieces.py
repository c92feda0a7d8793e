"""Word pieces that a Q-Former reads: the items and the caption of a picture, or a question.

Data writes them, models read them; both agree here. An item is the name of an object and its box: ``dog [ x1 y1 x2 y2
]``. Shapes: N canvases, T pieces of the longest row.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

CAPTION_START = "[DEC]"
"""Stands in place of [CLS] where a caption is written."""


class PieceKind(IntEnum):
    """Roles of a word piece in its row."""

    PADDING = 0
    START = 1
    TEXT = 2
    """Of a caption or question."""
    NAME = 3
    OPEN = 4
    X1 = 5
    Y1 = 6
    X2 = 7
    Y2 = 8
    CLOSE = 9
    END = 10
    """Of an item or a question."""


COORDINATES = (PieceKind.X1, PieceKind.Y1, PieceKind.X2, PieceKind.Y2)


class Item(NamedTuple):
    """An object as text."""

    name: str
    coordinates: Sequence[str]
    """x1, y1, x2 and y2."""


class Pieces(NamedTuple):
    """Rows of pieces, ``(N, T)`` int64 each; 0 on padding."""

    ids: Tensor
    positions: Tensor
    """Items count on from [CLS], and so does the text, from 1 again."""
    kinds: Tensor
    """A :class:`PieceKind`."""
    parts: Tensor
    """Number of the part of an item, such as its name or x1, from 1 on in each row; 0 for other pieces."""

    @property
    def mask(self) -> Tensor:
        """``(N, T)`` bool, false on padding."""
        return self.kinds != PieceKind.PADDING

    def without_items(self) -> "Pieces":
        """The same rows with items as padding: positions restart, so that nothing of them is left."""
        kept = (self.kinds == PieceKind.START) | (self.kinds == PieceKind.TEXT)
        return self._replace(kinds=self.kinds * kept, parts=self.parts * kept)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Pieces":
        """The same for each of its tensors."""
        return Pieces(*(change(part) for part in self))


def stack_pieces(rows: Sequence[Pieces]) -> Pieces:
    """N rows of 1-D tensors, padded to the longest."""
    return Pieces(*(pad_sequence(list(column), batch_first=True) for column in zip(*rows, strict=True)))


def blank_pieces(rows: int, device: torch.device | str | None = None) -> Pieces:
    """Rows without text: one piece each, the first of the vocabulary."""
    zeros = torch.zeros(rows, 1, dtype=torch.int64, device=device)
    return Pieces(zeros, zeros, zeros + PieceKind.START, zeros)


class WordPieces:
    """A WordPiece vocabulary of BERT's kind, and rows of its pieces.

    Args:
        vocabulary: Folder or hub name of a BERT tokenizer, or all words in their order, in lower case.

    Raises:
        ValueError: It cannot be read, or lacks one of BERT's special words.
    """

    def __init__(self, vocabulary: str | Path | Sequence[str]) -> None:
        if isinstance(vocabulary, str | Path):
            self._tokenizer = _read(str(vocabulary))
        else:
            from tokenizers.implementations import BertWordPieceTokenizer

            words = {word: number for number, word in enumerate(vocabulary)}
            _check(words, "the list of words")
            self._tokenizer = BertWordPieceTokenizer(vocab=words, lowercase=True)
        self._ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self._ids.setdefault(CAPTION_START, len(self._ids))

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def words(self) -> list[str]:
        """All words in their order."""
        return sorted(self._ids, key=self._ids.__getitem__)

    def id_of(self, word: str) -> int:
        """Number of a word, such as ``[MASK]``."""
        return self._ids[word]

    def split(self, text: str) -> list[int]:
        """Pieces of a text, without special ones."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def caption(self, items: Iterable[Item], caption: str, most: int = 512, most_of_caption: int = 87) -> Pieces:
        """[CLS], items, caption; items that no longer fit are left out, as wholes.

        Args:
            items: In their order.
            caption: Text that is written after the items.
            most: Pieces of [CLS] and items.
            most_of_caption: Pieces of the caption, which has no [SEP].
        """
        row = _Row(self.id_of("[CLS]"))
        for item in items:
            texts = [item.name, "[", *item.coordinates, "]"]
            pieces = [self.split(text) for text in texts]
            if len(row.ids) + sum(map(len, pieces)) + 1 > most:
                break
            for kind, piece in zip(range(PieceKind.NAME, PieceKind.END), pieces, strict=True):
                row.add(piece, kind, is_part=True)
            row.add([self.id_of("[SEP]")], PieceKind.END)
        row.restart()
        row.add(self.split(caption)[:most_of_caption], PieceKind.TEXT)
        return row.pieces()

    def question(self, text: str, most: int = 128) -> Pieces:
        """[CLS], the last pieces of a question, [SEP]."""
        row, pieces = _Row(self.id_of("[CLS]")), self.split(text)
        row.add(pieces[max(0, len(pieces) - (most - 2)) :], PieceKind.TEXT)
        row.add([self.id_of("[SEP]")], PieceKind.END)
        return row.pieces()


class _Row:
    """A row while it is written."""

    def __init__(self, start: int) -> None:
        self.ids, self._positions, self._kinds, self._parts = [start], [0], [int(PieceKind.START)], [0]
        self._number, self._next = 0, 1

    def add(self, ids: Sequence[int], kind: int, is_part: bool = False) -> None:
        self._number += is_part
        self._positions += range(self._next, self._next + len(ids))
        self._next += len(ids)
        self.ids += ids
        self._kinds += [int(kind)] * len(ids)
        self._parts += [self._number if is_part else 0] * len(ids)

    def restart(self) -> None:
        """Count positions from 1 on."""
        self._next = 1

    def pieces(self) -> Pieces:
        return Pieces(*(torch.tensor(column) for column in (self.ids, self._positions, self._kinds, self._parts)))


def _read(path: str) -> Any:
    """The tokenizer of a folder or hub name."""
    from transformers import BertTokenizerFast

    try:
        found = BertTokenizerFast.from_pretrained(path)
    except Exception as error:  # the tokenizers library raises nothing more precise
        raise ValueError(
            f"no WordPiece vocabulary can be read from {path} ({type(error).__name__}: {error}); give a folder with "
            "BERT's vocab.txt, such as that of google-bert/bert-base-uncased"
        ) from error
    if not found.init_kwargs.get("do_lower_case", True):
        raise ValueError(f"{path} tells upper from lower case; a vocabulary in lower case is read alone")
    _check(found.get_vocab(), path)
    return found.backend_tokenizer


def _check(words: dict[str, int], source: str) -> None:
    if lacking := [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if word not in words]:
        raise ValueError(f"{source} lacks {', '.join(lacking)}; a WordPiece vocabulary of BERT's kind has them")
