"""Pictures of a folder, of shards and at URLs: the same epoch, byte for byte, and the same faults."""

import functools
import hashlib
import http.server
import json
import pickle
import re
import threading
import zipfile

import fsspec
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mg_llava.data.collate import collate
from mg_llava.data.dataset import LLaVADataset
from mg_llava.data.pictures.files import PictureError, open_picture, picture_path
from mg_llava.data.pictures.places import StoredPath, is_there, place_of, state_of
from mg_llava.data.pictures.processor import PictureProcessor
from mg_llava.data.pictures.shard_writing import plan_picture_shards, write_picture_shards
from mg_llava.data.records.index import Samples
from mg_llava.data.records.open import fingerprint, open_records
from mg_llava.data.records.schema import RecordError
from mg_llava.data.samplers import LengthGroupedSampler
from mg_llava.work import urls
from mg_llava.work.tar_index import TarError
from mg_llava.work.urls import TransferError
from tests.data.conftest import tokenizer, tokenizers, turns_of  # noqa: F401
from tests.settings import grouped
from tests.work.test_tar_files import write_tar

SIZES = [(30, 40), (64, 20), (25, 25), (1, 9), (40, 41)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def project(tmp_path):
    """``images/`` with 12 pictures of several kinds, ``data.json`` with 17 records, ``boxes.json``."""
    draw = torch.Generator().manual_seed(0)
    names, records, boxes = [], [], []
    for number in range(12):
        name = f"{'ab'[number % 2]}/{number} {'é' * (number % 2)}.{('png', 'jpg', 'webp')[number % 3]}"
        pixels = torch.randint(0, 256, (*SIZES[number % 5], 3), generator=draw, dtype=torch.uint8)
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(file)
        names.append(name)
    for number in range(17):
        own = [names[number % 12], names[(number * 5) % 12]][: number % 3]
        text = "<image> " * len(own) + "What is it? " * (number % 4 + 1)
        record = {"id": f"r{number}", "conversations": turns_of(text, "A picture. " * (number % 5 + 1))}
        records.append({**record, "image": own} if own else record)
        for place, _ in enumerate(own):
            key = f"r{number}#{place}" if len(own) > 1 else f"r{number}"
            boxes.append(
                {"id": key, "boxes": [[0, 0, 9, 9], [2, 2, 7, 8]], "scores": [0.5, 0.4], "labels": ["x", "y"]}
            )
    (tmp_path / "data.json").write_text(json.dumps(records))
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return tmp_path


@pytest.fixture
def shards(project):
    plan = plan_picture_shards([project / "data.json"], str(project / "images"), project / "shards", 2000)
    assert write_picture_shards(plan) == len(plan.parts) > 3
    return plan.pattern


def make(project, words, folder, **changes):
    arguments = dict(
        data_path=project / "data.json",
        image_folder=folder,
        tokenizer=words,
        template="vicuna",
        picture_processor=PictureProcessor(32),
        box_path=project / "boxes.json",
        shuffle_boxes=True,
    )
    return LLaVADataset(**grouped(**{**arguments, **changes}))


def order_of(dataset, rank, world, monkeypatch):
    monkeypatch.setattr("mg_llava.data.samplers.get_dist_info", lambda: (rank, world))
    return list(LengthGroupedSampler(dataset, 2, seed=3))


def digests(dataset, order, workers=0):
    """A hash of all bytes of each batch of an epoch."""
    settings = {"multiprocessing_context": "fork"} if workers else {}
    loader = DataLoader(dataset, 2, sampler=order, num_workers=workers, collate_fn=collate, **settings)
    return [hashlib.blake2b(pickle.dumps(_plain(batch["data"]))).hexdigest() for batch in loader]


def _plain(value):
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else repr(value)


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and parts of its files; ``down`` requests are answered with an error."""

    down = 0

    def log_message(self, *_):
        pass

    def do_GET(self):
        if Ranges.down:
            Ranges.down -= 1
            self.send_error(503)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            super().do_GET()
            return
        content = open(self.translate_path(self.path), "rb").read()
        first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(content[first : last + 1])


@pytest.fixture
def server(project):
    handler = functools.partial(Ranges, directory=str(project))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def zipped(project):
    with zipfile.ZipFile(project / "images.zip", "w") as file:
        for path in sorted((project / "images").rglob("*.*")):
            file.write(path, path.relative_to(project / "images"))
    return f"zip://::{project}/images.zip"


def test_every_place_gives_the_same_epoch_byte_for_byte(project, shards, server, tokenizer, monkeypatch):  # noqa: F811
    plain = make(project, tokenizer, project / "images")
    with fsspec.open("memory://pictures/data.json", "wb") as file:
        file.write((project / "data.json").read_bytes())
    for path in (project / "images").rglob("*.*"):
        with fsspec.open(f"memory://pictures/{path.relative_to(project)}", "wb") as file:
            file.write(path.read_bytes())
    name = shards.rpartition("/")[2]
    places = {
        "shards": dict(folder=shards),
        "a pattern": dict(folder=f"{project}/shards/*.tar"),
        "a root": dict(folder=f"shards/{name}", data_root=project),
        "file": dict(folder=f"file://{project}/images"),
        "zip": dict(folder=zipped(project)),
        "memory": dict(folder="images", data_root="memory://pictures", data_path="data.json"),
        "http": dict(folder=f"{server}/images", data_path=f"{server}/data.json", box_path=f"{server}/boxes.json"),
        "http, shards": dict(folder=f"{server}/shards/{name}"),
    }
    sources = {name: make(project, tokenizer, **settings) for name, settings in places.items()}
    for world in (1, 3):
        for rank in range(world):
            order = order_of(plain, rank, world, monkeypatch)
            expected = digests(plain, order)
            for name, source in sources.items():
                assert order_of(source, rank, world, monkeypatch) == order
                assert digests(source, order) == expected, name
                if world == 1 and name in ("shards", "zip", "http, shards"):
                    assert digests(source, order, workers=2) == expected, f"{name}, in workers"
                    assert digests(source, order[4:], workers=1) == expected[2:], f"{name}, from the middle on"
    copy = pickle.loads(pickle.dumps(sources["shards"]))
    assert digests(copy, range(17)) == digests(plain, range(17))


def test_any_process_writes_the_same_shards(project, tmp_path):
    data, images = [project / "data.json"], str(project / "images")
    first, second = (plan_picture_shards(data, images, tmp_path / name, 2000) for name in "xy")
    assert write_picture_shards(first) == write_picture_shards(second, 3) == len(first.parts)
    contents = [{path.name: path.read_bytes() for path in plan.out.glob("*.tar")} for plan in (first, second)]
    assert contents[0] == contents[1]
    assert write_picture_shards(first) == 0
    # what a kill or a damage leaves is done again, and nothing else
    first.path(1).unlink()
    first.path(2).write_bytes(first.path(2).read_bytes()[:700])
    assert write_picture_shards(plan_picture_shards(data, images, first.out, 2000)) == 2
    assert {path.name: path.read_bytes() for path in first.out.glob("*.tar")} == contents[1]
    again = plan_picture_shards(data, first.pattern, tmp_path / "z", 10**9)  # shards of shards
    assert write_picture_shards(again) == 1 and again.pattern.endswith("/00000.tar")
    with pytest.raises(ValueError, match=r"has other tar files, such as 00001\.tar"):
        plan_picture_shards(data, images, first.out, 10**9)


def test_faults_name_the_shard_and_the_member(project, shards, tokenizer):  # noqa: F811
    with pytest.raises(PictureError, match=r"no/such.png of record 7 does not exist; check image_folder") as raised:
        open_picture(picture_path(shards, "no/such.png", "record 7"), "record 7")
    assert raised.value.fault == "missing" and "{00000.." in str(raised.value)
    for name in ("../data.json", "/etc/passwd", "a/../../b.png", "..", ""):
        for folder in (shards, "memory://pictures/images"):
            with pytest.raises(PictureError, match="outside"):
                picture_path(folder, name, "record 7", allow_outside=True)
            assert not is_there(place_of(folder, name))
    # a name in a plain folder leads neither into shards nor to the net
    for name in ("memory://pictures/data.json", f"{shards}: a/0 .png"):
        path = picture_path(str(project / "images"), name, "record 7", allow_outside=True)
        assert not isinstance(path, StoredPath) and not is_there(path)
    odd = [("empty.png", b""), ("cut.png", (project / "images/a/0 .png").read_bytes()[:60]), ("text.png", b"text")]
    odd += [("link.png", "empty.png")]
    folder = write_tar(project / "odd.tar", odd)
    for name, fault in zip(
        [name for name, _ in odd], ["empty", "truncated", "not a picture", "undecodable"], strict=True
    ):
        with pytest.raises(PictureError, match=rf"odd\.tar: {name} of record 7 cannot be read") as raised:
            open_picture(picture_path(folder, name), "record 7")
        assert raised.value.fault == fault
    with pytest.raises(FileNotFoundError, match=r"\d\.tar"):
        make(project, tokenizer, f"{project}/{{0..9}}.tar")
    (project / "x.tar.gz").write_bytes(b"")
    with pytest.raises(TarError, match="compressed"):
        make(project, tokenizer, f"{project}/x.tar.gz")


def test_a_picture_that_cannot_be_reached_now_is_not_left_out(project, server, tokenizer, monkeypatch):  # noqa: F811
    monkeypatch.setattr(urls, "_WAITS", (0.0, 0.0))
    source = make(project, tokenizer, f"{server}/images", bad_image="skip")
    plain = make(project, tokenizer, project / "images")
    Ranges.down = 2
    assert digests(source, [1, 2]) == digests(plain, [1, 2])  # tried again
    Ranges.down = 99
    with pytest.raises(TransferError, match=r"of record 'r1' of .*cannot be read"):
        source[1]
    assert source.bad_samples == 0
    Ranges.down = 0
    (project / "images/a/10 .jpg").unlink()
    skipped = [number for number in range(17) if source[number]["id"] != f"r{number}"]
    assert skipped == [number for number in range(17) if "a/10 .jpg" in (plain.record(number).images or ())]


def test_the_state_of_a_stored_picture_changes_with_it(project):
    path = place_of(write_tar(project / "one.tar", [("x", b"123")]), "x")
    before = state_of(path)
    assert before[0] == 3 and state_of(pickle.loads(pickle.dumps(path))) == before
    with fsspec.open("memory://changing/x", "wb") as file:
        file.write(b"123")
    place = place_of("memory://changing", "x")
    first = state_of(place)
    with fsspec.open("memory://changing/x", "wb") as file:
        file.write(b"124")
    assert state_of(place)[0] == 3 and state_of(place) != first


def test_records_in_shards_as_webdataset_writes_them(project, tokenizer):  # noqa: F811
    records = [json.loads(text) for text in map(json.dumps, json.loads((project / "data.json").read_text()))]
    files = []
    for record in records:
        sample = record["id"]
        names = record.pop("image", [])
        bare = {key: value for key, value in record.items() if key != "id"}
        files.append((f"s/{sample}.json", json.dumps(bare).encode()))
        for place, name in enumerate(names):
            ending = name.rpartition(".")[2]
            content = (project / "images" / name).read_bytes()
            files.append((f"s/{sample}.{place}.{ending}" if len(names) > 1 else f"s/{sample}.{ending}", content))
    for number in range(3):
        write_tar(project / f"w{number}.tar", files[number * 15 : number * 15 + 15])
    place = f"{project}/w{{0..2}}.tar"
    boxes = json.loads((project / "boxes.json").read_text())
    (project / "own.json").write_text(json.dumps([{**box, "id": f"s/{box['id']}"} for box in boxes]))
    source = make(project, tokenizer, place, data_path=place, box_path=project / "own.json", token_cache=project / "t")
    plain = make(project, tokenizer, project / "images")
    assert [source.record(number).id for number in range(17)] == [f"s/r{number}" for number in range(17)]
    for number in range(17):
        own, theirs = ({**dataset[number], "id": ""} for dataset in (source, plain))
        assert _plain(own) == _plain(theirs)
    assert list(source.modality_length) == list(plain.modality_length)
    again = make(project, tokenizer, place, data_path=place, box_path=project / "own.json", token_cache=project / "t")
    assert digests(again, range(17), workers=2) == digests(source, range(17))


@pytest.mark.parametrize("names", [["b.v2.json"], ["b.json", "b.JSON"]])
def test_no_record_of_a_shard_is_lost_by_its_name(names, tmp_path):
    record = json.dumps({"conversations": []}).encode()
    shard = write_tar(tmp_path / "a.tar", [("a.JPG", b""), ("a.JSON", record)])
    assert open_records(shard)[0] == {"id": "a", "image": "a.JPG", "conversations": []}
    shard = write_tar(tmp_path / "b.tar", [("a.json", record), *((name, record) for name in names)])
    with pytest.raises(RecordError, match=f"sample 'b' needs one b.json, found {', '.join(names)}"):
        open_records(shard)


def test_members_of_a_sample_that_lie_apart_are_joined(tmp_path):
    bare = {name: json.dumps({"conversations": [], "n": name}).encode() for name in "abcd"}
    files = [("a.0.jpg", b""), ("b.jpg", b""), ("a.1.jpg", b""), ("c.json", bare["c"]), ("./a.json", bare["a"])]
    first = write_tar(tmp_path / "0.tar", [*files, ("b.json", bare["b"]), ("d.meta.json", b"{}"), ("e.png", b"")])
    write_tar(tmp_path / "1.tar", [("d.json", bare["d"]), ("c.mp4", b"")])
    pattern = f"{tmp_path}/*.tar"
    records = list(open_records(pattern))
    assert [record["n"] for record in records] == ["c", "a", "b", "d"]  # in the order of the records themselves
    shown = [record.get("video") or record.get("image") for record in records]
    assert shown == ["c.mp4", ["./a.0.jpg", "./a.1.jpg"], "b.jpg", None]
    assert all(is_there(place_of(pattern, name)) for name in ("c.mp4", "./a.0.jpg", "b.jpg"))
    with pytest.raises(RecordError, match=r"sample 'd' needs one d\.json, found d\.meta\.json"):
        open_records(first)
    twice = write_tar(tmp_path / "2.tar", [("d.json", bare["d"]), ("c.mp4", b""), ("d.JSON", b"{}")])
    with pytest.raises(RecordError, match=r"sample 'd' needs one d\.json, found d\.json, d\.JSON"):
        open_records(twice)


def test_a_sample_with_two_videos_is_refused(tmp_path):
    talk = {"conversations": [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "This."}]}
    files = [("a.json", json.dumps(talk).encode()), ("a.0.mp4", b""), ("a.1.mp4", b"")]
    shard = write_tar(tmp_path / "a.tar", files)
    with pytest.raises(RecordError, match=r"video is \['a\.0\.mp4', 'a\.1\.mp4'\]; it must be the path of one video"):
        Samples(shard)


def test_the_fingerprint_of_shards_tells_their_pictures(tmp_path):
    files = [("a.json", b'{"conversations": []}'), ("a.jpg", b"")]
    shards = [write_tar(tmp_path / f"{number}.tar", files[: number + 1]) for number in range(2)]
    assert fingerprint(shards[0]) != fingerprint(shards[1]) == fingerprint(shards[1])
