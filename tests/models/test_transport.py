"""How a batch comes to the model's device."""

import torch

from mg_llava.data.collate import collate
from tests import toy


def test_batches_are_copied_without_waiting(toy_paths, monkeypatch):
    model = toy.build_model(toy_paths)
    batch = collate(toy.make_batch([(9, 1), (5, 0)]))
    asked = []
    plain = torch.Tensor.to

    def to(self, *args, **kwargs):
        asked.append(kwargs.get("non_blocking"))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)
    moved = model.data_preprocessor(batch, True)
    assert len(asked) == 5 and all(asked)  # ids, mask, labels, pictures, boxes
    assert moved["data"]["ids"] == batch["data"]["ids"]


def test_another_preprocessor_can_be_given(toy_paths):
    model = toy.build_model(toy_paths, data_preprocessor={"type": "BaseDataPreprocessor"})
    assert model.data_preprocessor._non_blocking is False
