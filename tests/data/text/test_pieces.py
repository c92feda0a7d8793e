"""Items and captions of records, questions, and their way through the data set to a batch."""

from pathlib import Path

import pytest
import torch

from mg_llava.data.collate import collate
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.records.schema import make_box_record
from mg_llava.data.records.turns import Turn
from mg_llava.data.text.pieces import PieceWriter, match_label
from mg_llava.pieces import PieceKind, Pieces
from tests import toy

TURNS = [Turn("human", "<image>\na cat?"), Turn("gpt", "a dog"), Turn("human", "and?"), Turn("gpt", "cats")]


def words_of(writer: PieceWriter, pieces: Pieces) -> str:
    return " ".join(writer.words.words[number] for number in pieces.ids.tolist())


def test_items_are_named_boxes_by_score() -> None:
    writer = PieceWriter(toy.PIECES)
    boxes = [[0, 0, 10, 20], [5, 5, 9, 9], [1, 1, 1.5, 9], [3, 3, 8, 8], [2, 2, 7, 7]]
    record = make_box_record(boxes, [0.5, 0.9, 0.8, 0.1, 0.95], ["cat", "dog", "cat", "cat", " "])
    items = writer.items_of(record, (20, 40))
    assert [item.name for item in items] == ["dog", "cat"]  # surest first; thin, unsure and nameless ones left out
    assert items[1].coordinates == ["0.000", "0.000", "0.500", "0.500"]  # shares of the original, three decimals
    (pieces,) = writer(TURNS, [record], [(20, 40)])["pieces"]
    text = words_of(writer, pieces)
    assert text.startswith("[CLS] dog [ ") and text.endswith("[SEP] a dog cat ##s")
    kinds = pieces.kinds.tolist()
    assert kinds.count(PieceKind.END) == 2 and kinds[-1] == PieceKind.TEXT
    bare = PieceWriter(toy.PIECES, items=False)
    assert words_of(bare, bare(TURNS, [record], [(20, 40)])["pieces"][0]) == "[CLS] a dog cat ##s"
    coarse = PieceWriter(toy.PIECES, text=dict(style="int100", frame="original"), least_score=0.6)
    assert [list(item.coordinates) for item in coarse.items_of(record, (20, 40))] == [["25", "12", "45", "22"]]
    asked = PieceWriter(toy.PIECES, reads="question")
    rows = asked(TURNS, [record, record], [(20, 40)] * 2)["pieces"]
    assert [words_of(asked, row) for row in rows] == ["[CLS] a cat [UNK] and [UNK] [SEP]"] * 2
    with pytest.raises(ValueError, match="reads is 'answer'; known: caption, question"):
        PieceWriter(toy.PIECES, reads="answer")  # type: ignore[arg-type]


def test_labels_are_matched_back_to_tags() -> None:
    tags = ("Dog", "traffic light", "light", "red car")
    for label, tag in {
        "dog": "Dog",
        "traffic light": "traffic light",
        "traffic light red": "traffic light",  # ran over into the next tag
        "old red car": "red car",
        "red light": "light",
        "cat": "cat",
        "lights": "lights",  # no word of a tag
    }.items():
        assert match_label(label, tags) == tag
    record = make_box_record([[0, 0, 9, 9]], [1.0], ["dog light"], tags=["cat", "dog"])
    assert [item.name for item in PieceWriter(toy.PIECES).items_of(record, (10, 10))] == ["dog"]


def test_pieces_come_with_their_pictures(tmp_path: Path) -> None:
    data = toy.write_data(tmp_path)
    llm = toy.write_tokenizer(tmp_path / "llm")
    dataset = LLaVADataset(
        **data,
        tokenizer=str(llm),
        template="vicuna",
        picture_processor=dict(type="mg_llava.PictureProcessor", image_size=toy.CANVAS),
        boxes=dict(extra=dict(type="mg_llava.PieceWriter", vocabulary=toy.PIECES)),
    )
    samples = [dataset[number] for number in range(4)]  # the second has two pictures, the fourth none
    assert [len(sample.get("extra", {"pieces": []})["pieces"]) for sample in samples] == [1, 2, 1, 0]
    batch = collate(samples)["data"]
    pieces = batch["extra"]["pieces"]
    assert pieces.ids.shape[0] == len(batch["canvas"]) == 4
    for row, (sample, place) in enumerate([(0, 0), (1, 0), (1, 1), (2, 0)]):
        own = samples[sample]["extra"]["pieces"][place]
        assert torch.equal(pieces.ids[row][pieces.mask[row]], own.ids)
    assert "extra" not in collate([samples[3]])["data"]
    del samples[1]["extra"]
    with pytest.raises(ValueError, match=r"4 pictures in the batch but 2 entries of extra\['pieces'\]"):
        collate(samples)
