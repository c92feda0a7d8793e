"""Members of tar files by their places: equal to tarfile's, and nothing is given back from a damaged file."""

import io
import random
import tarfile
import zlib

import numpy as np
import pytest

from mg_llava.work import tar_index
from mg_llava.work.tar_files import TarFiles, is_tar, list_tars
from mg_llava.work.tar_index import TarError, open_index


def write_tar(path, files, form=tarfile.GNU_FORMAT):
    """A tar file of names and contents; a content of None is a folder, one that is text a link to it."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type = tarfile.DIRTYPE if content is None else tarfile.SYMTYPE
                info.linkname = content or ""
                tar.addfile(info)
    return str(path)


def contents(count, seed=0):
    draw = random.Random(seed)
    return [
        (f"d{n % 3}/{seed}_{n}.bin", draw.randbytes(draw.choice((0, 1, 511, 512, 513, 3000)))) for n in range(count)
    ]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_members_are_those_of_tarfile(form, tmp_path):
    long = [("x" * 90 + "/" + "y" * 150 + ".bin", b"long")] if form != tarfile.USTAR_FORMAT else []
    files = [[*contents(20, seed), (f"{seed}", None), *long[: 1 - seed], (f"./é{seed}", b"dot")] for seed in range(2)]
    for number, part in enumerate(files):
        write_tar(tmp_path / f"{number:02d}.tar", part, form)
    tars = TarFiles(f"{tmp_path}/{{00..01}}.tar")
    expected = {name.removeprefix("./"): content for part in files for name, content in part if content is not None}
    assert len(tars) == len(expected)
    for name, content in expected.items():
        assert tars.read(tars.find(name)) == content == tars.read(tars.find(f"./{name}"))
    assert tars.find("no") is None and tars.find("0") is None
    assert [name.removeprefix("./") for name, _ in tars.list_members()] == list(expected)
    # once more from the indices, which are beside the tar files
    for path in tars.paths:
        assert np.array_equal(open_index(path).keys, tar_index._scan(path, 0 or len(open(path, "rb").read())).keys)


def test_an_index_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", contents(5))
    first = open_index(path)
    with monkeypatch.context() as without:
        without.setattr(tar_index, "_scan", None)
        assert np.array_equal(open_index(path).starts, first.starts)
    write_tar(path, contents(40))
    assert len(open_index(path).keys) == 40
    # a damaged one is made again; one that cannot be kept beside the file is kept in the user's cache
    (tmp_path / "a.tar.index").write_bytes(b"PK")
    monkeypatch.setattr(
        tar_index,
        "save_arrays",
        lambda place, save=tar_index.save_arrays, **arrays: (
            save(place, **arrays) if "cache" in str(place) else (_ for _ in ()).throw(PermissionError(str(place)))
        ),
    )
    assert len(open_index(path).keys) == 40
    monkeypatch.setattr(tar_index, "_scan", None)
    assert len(open_index(path).keys) == 40


def test_links_and_names_that_lead_out_are_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    files = [("a", b"a"), ("link", str(tmp_path / "secret")), ("../secret", b"b"), ("/etc/c", b"c")]
    tars = TarFiles(write_tar(tmp_path / "a.tar", files))
    with pytest.raises(TarError, match="a link, a device or a sparse file"):
        tars.read(tars.find("link"))
    assert tars.read(tars.find("../secret")) == b"b"  # a name like any other: nothing is unpacked


def test_a_name_that_comes_twice_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("x", b"1"), ("./x", b"2")])
    with pytest.raises(TarError, match=r"a\.tar has the member './x' twice"):
        TarFiles(path)
    for name in "bc":
        write_tar(tmp_path / f"{name}.tar", [(name, b""), ("same/one", b"1")])
    with pytest.raises(TarError, match=r"b\.tar and .*c\.tar both have the member 'same/one'"):
        TarFiles(f"{tmp_path}/[bc]*.tar")


def test_every_cut_and_every_broken_header_is_noticed(tmp_path):
    files = contents(6)
    whole = open(write_tar(tmp_path / "a.tar", files), "rb").read()
    ends = len(whole.rstrip(b"\0"))
    draw = random.Random(0)
    for number, size in enumerate([*draw.sample(range(ends), 30), 0, 512, ends // 512 * 512]):
        path = tmp_path / f"cut{number}.tar"
        path.write_bytes(whole[:size])
        with pytest.raises(TarError, match="damaged or cut off"):
            TarFiles(str(path))
    headers = [member.offset for member in tarfile.open(tmp_path / "a.tar")]
    for number, place in enumerate(headers):
        path = tmp_path / f"broken{number}.tar"
        path.write_bytes(whole[: place + 20] + b"\xff" + whole[place + 21 :])
        with pytest.raises(TarError, match="damaged or cut off"):
            TarFiles(str(path))
    both = tmp_path / "joined.tar"
    both.write_bytes(whole + whole)
    with pytest.raises(TarError, match="neither a member nor the end"):
        TarFiles(str(both))
    packed = tmp_path / "packed.tar"
    packed.write_bytes(zlib.compress(whole))
    with pytest.raises(TarError, match="compressed"):
        TarFiles(str(packed))


def test_another_file_in_its_place_is_noticed_when_it_is_read(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("x", b"11"), ("y", b"2")])
    tars = TarFiles(path)
    write_tar(path, [("y", b"2"), ("x", b"11")])  # of the same size
    with pytest.raises(TarError, match="changed or cut off while it was in use"):
        tars.read(tars.find("x"))
    (tmp_path / "a.tar").unlink()
    with pytest.raises(TarError, match="removed"):
        tars.read(tars.find("x"))


def test_patterns(tmp_path):
    assert list_tars("s3://b/{08..11}/{0..1}.tar")[2:5] == ["s3://b/09/0.tar", "s3://b/09/1.tar", "s3://b/10/0.tar"]
    for name in ("b", "a", "c.x"):
        write_tar(tmp_path / f"{name}.tar", [])
    assert list_tars(f"file://{tmp_path}/*.tar") == [f"{tmp_path}/{name}.tar" for name in ("a", "b", "c.x")]
    with pytest.raises(FileNotFoundError, match="no tar file fits"):
        list_tars(f"{tmp_path}/z*.tar")
    with pytest.raises(FileNotFoundError):
        TarFiles(f"{tmp_path}/{{0..3}}.tar")
    with pytest.raises(ValueError, match="is no range"):
        list_tars("{3..1}.tar")
    (tmp_path / "folder.tar").mkdir()
    assert is_tar("a/*.tar") and not is_tar(str(tmp_path / "folder.tar")) and not is_tar(None)
