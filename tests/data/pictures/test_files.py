"""Decoding, color modes, content hashes, and what can be wrong with files."""

import io
import os
import pickle
import socket

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mg_llava.data.pictures.files import (
    PictureError,
    content_hash,
    exif_orientation,
    open_picture,
    picture_path,
    probe_picture,
    to_rgb,
    verify_picture,
)

MODES = "1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr HSV LAB I F I;16 I;16B".split()


def noise(width=48, height=32, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("mode", MODES)
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
    for read in (open_picture, probe_picture, verify_picture):
        with pytest.raises(PictureError, match=r"bomb\.png cannot be read \(too large; DecompressionBomb"):
            read(tmp_path / "bomb.png")
    # An explicit limit counts in Pillow's place, above it and below it.
    with pytest.raises(PictureError, match="300 x 300 pixels exceed the limit of 89999 pixels"):
        open_picture(tmp_path / "bomb.png", max_pixels=300 * 300 - 1)
    assert open_picture(tmp_path / "bomb.png", max_pixels=300 * 300).size == (300, 300)


FAULTS = {
    "missing": None,
    "empty": b"",
    "not a picture": b"<html>",
    "truncated": encode(noise(), "JPEG")[:700],
    "zero size": b"GIF89a\x00\x00\x05\x00\x00\x00\x00;",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_have_names(tmp_path, fault):
    path = tmp_path / "a.jpg"
    if FAULTS[fault] is not None:
        path.write_bytes(FAULTS[fault])
    with pytest.raises(PictureError) as caught:
        open_picture(path)
    assert caught.value.fault == fault
    assert pickle.loads(pickle.dumps(caught.value)).fault == fault


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@given(share=st.floats(0, 1))
@settings(max_examples=12)
def test_a_cut_file_is_found_where_opening_fails(tmp_path_factory, kind, share):
    content = encode(noise(), kind)
    path = tmp_path_factory.mktemp("cut") / "a.bin"
    path.write_bytes(content[: int(share * len(content))])
    outcomes = []
    for read in (open_picture, verify_picture):
        try:
            found = read(path)
            outcomes.append((getattr(found, "width", None), None))
        except PictureError as error:
            outcomes.append((None, error.fault))
    assert outcomes[0] == outcomes[1]
    if share < 0.5:
        assert outcomes[0][1] in ("empty", "truncated", "not a picture", "undecodable")


def test_a_plug_in_that_breaks_is_a_picture_error(tmp_path, monkeypatch):
    noise().save(tmp_path / "a.png")

    def load(self):
        raise KeyError("chunk")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(PictureError, match=r"a\.png of record 7 cannot be read \(undecodable; KeyError"):
        open_picture(tmp_path / "a.png", "record 7")


def test_cmyk_jpegs_come_out_in_their_colors(tmp_path):
    # Adobe's files hold inverted values, as those that Pillow writes do.
    colors = {"red": (255, 0, 0), "white": (255, 255, 255), "black": (0, 0, 0), "blue": (0, 0, 255)}
    for name, color in colors.items():
        Image.new("RGB", (16, 16), color).convert("CMYK").save(tmp_path / f"{name}.jpg", quality=95)
        image = open_picture(tmp_path / f"{name}.jpg")
        assert image.mode == "CMYK" and b"Adobe" in (tmp_path / f"{name}.jpg").read_bytes()
        assert np.abs(np.array(to_rgb(image).getpixel((8, 8))) - color).max() <= 3


def test_exact_keeps_gray_in_shares():
    image = Image.fromarray(np.array([[0, 0.5, 1, np.nan]], dtype=np.float32))
    assert [to_rgb(image, "exact").getpixel((x, 0))[0] for x in range(4)] == [0, 128, 255, 0]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(tmp_path, kind):
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    path = tmp_path / f"a.{kind.lower()}"
    first.save(path, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "WEBP" else {}))
    assert probe_picture(path).animated and verify_picture(path).animated
    assert to_rgb(open_picture(path)).getpixel((4, 4)) == (255, 0, 0)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=25)
def test_content_hash_depends_on_size_and_pixels_alone(width, height, seed):
    image = noise(width, height, seed)
    wanted = content_hash(image)
    assert len(wanted) == 32 and int(wanted, 16) >= 0
    for kind in ("PNG", "BMP", "TIFF"):
        assert content_hash(Image.open(io.BytesIO(encode(image, kind)))) == wanted
    opaque = image.convert("RGBA")
    opaque.putalpha(7)
    assert content_hash(opaque) == wanted
    gray = image.convert("L")
    assert content_hash(gray) == content_hash(gray.convert("RGB"))
    changed = np.array(image)
    changed[0, 0, 0] ^= 1
    assert content_hash(Image.fromarray(changed)) != wanted
    if width != height:
        reshaped = np.array(image).reshape(width, height, 3)
        assert content_hash(Image.fromarray(reshaped)) != wanted


def test_probe(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise().save(tmp_path / "turned.jpg", exif=exif)
    probe = probe_picture(tmp_path / "turned.jpg")
    assert (probe.width, probe.height, probe.mode, probe.format, probe.orientation) == (48, 32, "RGB", "JPEG", 6)
    assert not (probe.animated or probe.transparent or probe.wrong_extension)
    assert probe.upright_size(apply_exif=True) == (32, 48) and probe.upright_size(apply_exif=False) == (48, 32)
    assert to_rgb(open_picture(tmp_path / "turned.jpg"), apply_exif=True).size == probe.upright_size(True)
    assert verify_picture(tmp_path / "turned.jpg") == probe


EXTENSIONS = {
    ("a.jpg", "PNG"): True,
    ("a.png", "JPEG"): True,
    ("a.JPEG", "JPEG"): False,
    ("a.dat", "PNG"): False,
    ("a", "PNG"): False,
    ("a.jpg", "MPO"): False,
}


@pytest.mark.parametrize(("name", "kind"), EXTENSIONS)
def test_wrong_extensions(tmp_path, name, kind):
    more = {"save_all": True, "append_images": [noise(seed=1)]} if kind == "MPO" else {}
    (tmp_path / name).write_bytes(encode(noise(), kind, **more))
    probe = probe_picture(tmp_path / name)
    assert probe.format == kind and probe.wrong_extension is EXTENSIONS[name, kind] and not probe.animated
    assert open_picture(tmp_path / name).size == (48, 32)


def test_broken_metadata_does_not_lose_a_picture(tmp_path):
    path = tmp_path / "a.jpg"
    noise().save(path, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    assert exif_orientation(open_picture(path)) == 1
    assert to_rgb(open_picture(path), apply_exif=True).size == (48, 32)
    exif = Image.Exif()
    exif[0x0112] = 77
    noise().save(path, exif=exif)
    assert probe_picture(path).orientation == 1


@pytest.fixture
def warnings_of(monkeypatch):
    """What is logged about pictures, from the first one on."""
    logged = []
    monkeypatch.setattr("mg_llava.data.pictures.files._warned", set())
    monkeypatch.setattr("mmengine.logging.print_log", lambda text, **_: logged.append(text))
    return logged


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_pictures_that_stay_on_their_side_are_said_once(tmp_path, warnings_of, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise().save(tmp_path / "a.jpg", exif=exif)
    image = open_picture(tmp_path / "a.jpg")
    to_rgb(image, apply_exif=True), content_hash(image), to_rgb(noise())
    assert warnings_of == []
    to_rgb(image), to_rgb(image)
    assert len(warnings_of) == 1
    assert f"a.jpg: EXIF orientation {orientation} is not applied" in warnings_of[0]


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_gray_that_saturates_is_said_once_and_scaled_in_exact_mode(tmp_path, warnings_of, mode):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    image = Image.fromarray(values) if mode == "I;16" else Image.fromarray(values.astype(np.int32)).convert(mode)
    assert np.array_equal(np.asarray(to_rgb(image, "exact"))[..., 0].ravel(), np.arange(256)) and warnings_of == []
    assert np.asarray(to_rgb(image)).min() == 0 and np.asarray(to_rgb(image))[1:].min() == 255
    assert len(warnings_of) == 1 and f"16-bit gray (mode {mode}) saturates" in warnings_of[0]


def _make_pipe(path):
    os.mkfifo(path)


def _make_socket(path):
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(path))


@pytest.mark.parametrize("make", [_make_pipe, _make_socket, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_only_regular_files_are_opened(tmp_path, make):
    make(tmp_path / "a.png")
    for reader in (open_picture, probe_picture, verify_picture):
        with pytest.raises(PictureError, match="it is no regular file") as error:
            reader(tmp_path / "a.png", "record 1")
        assert error.value.fault == "not a picture"


OUTSIDE = ["../secret.png", "{outside}/secret.png", "a/../../secret.png", "link/secret.png", "link.png"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_pictures_outside_of_the_folder_are_refused(tmp_path, name):
    folder, outside = tmp_path / "images", tmp_path
    (folder / "a").mkdir(parents=True)
    noise().save(outside / "secret.png")
    noise().save(folder / "a" / "own.png")
    (folder / "link").symlink_to(outside)
    (folder / "link.png").symlink_to(outside / "secret.png")
    name = name.format(outside=outside)
    with pytest.raises(PictureError, match=r"lies outside of image_folder .*outside_pictures='allow'") as error:
        picture_path(str(folder), name, "record 1")
    assert error.value.fault == "outside"
    assert open_picture(picture_path(str(folder), name, "record 1", allow_outside=True)).size == (48, 32)


def test_links_within_the_folder_and_to_it_are_followed(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    noise().save(tmp_path / "images" / "a" / "own.png")
    (tmp_path / "images" / "b").symlink_to(tmp_path / "images" / "a")
    (tmp_path / "linked").symlink_to(tmp_path / "images")
    for name in ("a/own.png", "b/own.png", "a/../a/own.png"):
        assert open_picture(picture_path(str(tmp_path / "linked"), name)).size == (48, 32)
