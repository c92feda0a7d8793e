"""Encoders that give tokens of whole networks, against the libraries that the networks are from."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from mg_llava.models.encoders.sam import SAMEncoder
from mg_llava.models.encoders.timm import TimmTokenEncoder
from tests import toy

NAME = "test_vit.r160_in1k"


def test_tokens_of_a_vision_transformer_are_timms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model(NAME, pretrained=False, img_size=32).eval()
    save_file(whole.state_dict(), tmp_path / "vit.safetensors")
    given = dict(name=NAME, image_size=32, checkpoint=str(tmp_path / "vit.safetensors"), dtype="float32")
    encoder = TimmTokenEncoder(**given)  # type: ignore[arg-type]
    spec = encoder.spec
    assert (spec.tokens, spec.channels, spec.image_size) == (5, whole.num_features, 32)
    canvas = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = whole.forward_features(encoder.view(canvas))
        assert torch.equal(encoder(canvas).tokens, expected)  # type: ignore[arg-type]
        bare = TimmTokenEncoder(**given, class_token=False)  # type: ignore[arg-type]
        assert bare.spec.tokens == 4
        assert torch.equal(bare(canvas).tokens, expected[:, 1:])  # type: ignore[arg-type]
        # fewer blocks: what comes after them is left out of the checkpoint, the last norm stays
        short = TimmTokenEncoder(**given, depth=2)  # type: ignore[arg-type]
        hidden = whole.forward_intermediates(encoder.view(canvas), indices=[1], norm=True, intermediates_only=True)
        grid = short(canvas).tokens[:, 1:].transpose(1, 2).unflatten(2, (2, 2))  # type: ignore[index]
        torch.testing.assert_close(grid, hidden[0])
    with pytest.raises(ValueError, match="is no vision transformer; TimmEncoder gives the maps"):
        TimmTokenEncoder(name="test_convnext2.r160_in1k")


def test_the_published_eva_has_257_tokens() -> None:
    spec = TimmTokenEncoder.describe({"name": "eva_giant_patch14_clip_224", "depth": 39})
    assert (spec.tokens, spec.channels, spec.image_size) == (257, 1408, 224)


def test_tokens_of_sam_are_means_over_cells(tmp_path: Path) -> None:
    from transformers import SamModel

    network = toy.write_sam(tmp_path / "sam")
    encoder = SAMEncoder(str(tmp_path / "sam"), pool=2, dtype="float32")
    assert (encoder.spec.tokens, encoder.spec.channels, encoder.spec.image_size) == (4, 8, 32)
    canvas = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    model = SamModel.from_pretrained(network).eval()
    with torch.no_grad():
        cells = model.get_image_embeddings(encoder.view(canvas))  # (2, 8, 4, 4)
        tokens = encoder(canvas).tokens
    assert tokens is not None
    for row, column in ((0, 0), (1, 0), (1, 1)):
        mean = cells[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean(dim=(2, 3))
        torch.testing.assert_close(tokens[:, 2 * row + column], mean)
    with pytest.raises(ValueError, match="pool is 3, which does not divide the 4 cells"):
        SAMEncoder(str(tmp_path / "sam"), pool=3)
    with pytest.raises(ValueError, match="holds a 'clip_vision_model' model; expected a Hugging Face folder of SAM"):
        SAMEncoder(str(toy.write_clip(tmp_path / "clip")))
