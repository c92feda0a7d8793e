"""How a batch comes to the model's device."""

import torch
from torch.utils._pytree import tree_leaves

from mg_llava.data.collate import collate
from tests import toy


def test_a_batch_travels_once_for_each_dtype(toy_paths, monkeypatch):
    model = toy.build_model(toy_paths)
    made = toy.make_batch([(9, 1), (5, 2)])
    batch = collate([one | {"tokens": [model.token_count(1, len(own)) for own in one["boxes"]]} for one in made])
    asked = []
    plain = torch.Tensor.to

    def to(self, device, **kwargs):
        asked.append((self.dtype, kwargs))
        return plain(self, "cpu", copy=True)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(model.data_preprocessor, "_device", torch.device("meta"))  # stands for another device
    moved = model.data_preprocessor(batch, True)
    # ids and layout; masks; boxes; the canvas
    assert {dtype for dtype, _ in asked} == {torch.int64, torch.bool, torch.float32, torch.uint8} and len(asked) == 4
    assert all(kwargs == {"non_blocking": True} for _, kwargs in asked)
    monkeypatch.undo()
    for found, own in zip(tree_leaves(moved), tree_leaves(batch), strict=True):
        assert torch.equal(found, own) if isinstance(own, torch.Tensor) else found == own
    assert moved["data"]["layout"].lengths == batch["data"]["layout"].lengths


def test_large_tensors_are_not_joined_on_the_host(toy_paths, monkeypatch):
    preprocessor = toy.build_model(toy_paths).data_preprocessor
    large, small = torch.zeros(1 << 18), [torch.ones(3), torch.ones(2)]
    monkeypatch.setattr(preprocessor, "_device", torch.device("meta"))
    found = preprocessor({"features": [large, *small]}, False)["features"]
    assert [one.shape for one in found] == [(1 << 18,), (3,), (2,)] and all(one.is_meta for one in found)
    assert found[1].untyped_storage()._cdata == found[2].untyped_storage()._cdata
    assert found[0].untyped_storage().nbytes() == large.nbytes


def test_another_preprocessor_can_be_given(toy_paths):
    model = toy.build_model(toy_paths, data_preprocessor={"type": "BaseDataPreprocessor"})
    assert model.data_preprocessor._non_blocking is False
