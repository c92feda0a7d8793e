"""Decoding and color modes."""

import numpy as np
import pytest
from PIL import Image

from mg_llava.data.pictures import PictureError, open_picture, to_rgb


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
@pytest.mark.parametrize("box_mode", ["reference", "exact"])
def test_every_mode_becomes_rgb(mode, box_mode):
    image = Image.new(mode, (5, 3))
    out = to_rgb(image, box_mode)
    assert out.mode == "RGB" and out.size == (5, 3) and image.mode == mode


def test_reference_is_the_plain_conversion():
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert to_rgb(image).getpixel((0, 0)) == (10, 20, 30)
    deep = Image.fromarray(np.array([[0, 65535, 32768]], dtype=np.uint16))
    assert to_rgb(deep).getpixel((2, 0)) == deep.convert("RGB").getpixel((2, 0))


def test_exact_respects_transparency_and_depth():
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert to_rgb(image, "exact").getpixel((0, 0)) == (255, 255, 255)
    palette = image.quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert to_rgb(palette, "exact").getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.array([[0, 65535, 32768]], dtype=np.uint16))
    assert [to_rgb(deep, "exact").getpixel((x, 0))[0] for x in range(3)] == [0, 255, 128]


def test_exif_rotation_is_applied_on_request_only(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    image = open_picture(tmp_path / "a.jpg")
    assert to_rgb(image).size == (6, 4) and to_rgb(image, "exact").size == (6, 4)
    assert to_rgb(image, apply_exif=True).size == (4, 6)


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "folder"])
def test_bad_files_are_named(tmp_path, kind):
    path = tmp_path / "bad.jpg"
    if kind == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:600])
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(b"" if kind == "empty" else b"<html>not found</html>")
    with pytest.raises(PictureError, match=r"bad\.jpg of record 7 .*(exist|cannot be read)"):
        open_picture(path, owner="record 7")


def test_decompression_bomb_is_an_error(tmp_path, monkeypatch):
    Image.new("1", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(PictureError, match="DecompressionBomb"):
        open_picture(tmp_path / "bomb.png")
