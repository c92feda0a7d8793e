"""A real vLLM beside our own generation, where one is installed: ``MG_LLAVA_VLLM`` names its command.

It needs an environment of its own, with another torch; tools/README.md has the commands. The plugin is taken from the
checkout, whose other packages (mmengine, timm, ...) that environment has.
"""

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from PIL import Image

from mg_llava.data.inputs import load_picture
from mg_llava.inference import Predictor, Request
from mg_llava.inference.serving.far_side import FarSide, check_url
from mg_llava.inference.serving.remote import RemoteEngine
from mg_llava.inference.serving.server import ChatServer
from mg_llava.profiling._miniature import CONFIG, at_root, load_miniature
from tests.inference.serving_toys import a_picture, client_of, image, serving, text, user
from tests.run import ROOT, free_port, run_command

pytestmark = pytest.mark.slow
BOXES = [[4.0, 6.0, 20.0, 30.0], [40.0, 2.0, 60.0, 44.0]]
LONGEST = 24
VARIABLES = {
    "CUDA_VISIBLE_DEVICES": "",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def vllm_program() -> Path:
    """The command of vLLM."""
    program = os.environ.get("MG_LLAVA_VLLM")
    if program is None:
        pytest.skip("no vLLM is named")
    return Path(program)


def variables(**more: str) -> dict[str, str]:
    """The environment of a process of vLLM, which is not ours."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return {**kept, **VARIABLES, "PATH": f"{vllm_program().parent}{os.pathsep}{kept['PATH']}", **more}


@contextmanager
def vllm_serving(folder: Path, log: Path, *options: str, **more: str) -> Iterator[str]:
    """``vllm serve FOLDER`` on this machine; its address."""
    port = free_port()
    command = [str(vllm_program()), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enforce-eager", "--dtype", "float32", *options]
    with log.open("wb") as said:
        process = subprocess.Popen(command, env=variables(**more), stdout=said, stderr=said, cwd=log.parent)
        url = f"http://127.0.0.1:{port}"
        try:
            while not _is_ready(url):
                assert process.poll() is None, log.read_text()[-5000:]
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """The miniature; its weights are those of the file that ``MG_LLAVA_CHECKPOINT`` names, or new ones."""
    named = os.environ.get("MG_LLAVA_CHECKPOINT")
    with at_root():
        return load_miniature(CONFIG, Path(named) if named else None)[0]


@pytest.fixture(scope="module")
def llm(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The language model as it is trained, beside its tokenizer."""
    folder = tmp_path_factory.mktemp("llm")
    predictor.model.llm.save_pretrained(folder)
    predictor.front_end.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(predictor: Predictor, llm: Path) -> Iterator[ChatServer]:
    with vllm_serving(llm, llm.parent / "vllm.log", "--enable-prompt-embeds") as url:
        engine = RemoteEngine(predictor, FarSide(check_url(url, ())))
        with serving(predictor, engine=engine) as server:
            yield server


def a_request(number: int) -> tuple[list[dict], Request]:
    """None, one or two pictures with or without boxes, and a question."""
    shown = [a_picture(seed) for seed in range(number % 3)]
    given = BOXES[: number % 4 // 2 * 2]
    asked = ["What is there?", "How many digits are there?", "Describe the picture."][number % 3 - number % 2]
    turns = [("human", "<image>\n" * len(shown) + asked)]
    parts = [image(picture, boxes=given) for picture in shown]
    boxes: Any = given if len(shown) == 1 else [given] * len(shown) or None
    return user(*parts, text(asked)), Request(turns, shown or None, boxes)


def ask(server: ChatServer, number: int, **given: Any) -> Any:
    more = {"temperature": 0, "max_tokens": LONGEST, **given}
    return client_of(server, timeout=300).chat.completions.create(model="toy", messages=a_request(number)[0], **more)


def test_greedy_answers_are_those_of_our_own_generation(server: ChatServer, predictor: Predictor) -> None:
    """At once, every other one streamed; with log-probabilities."""
    wanted = predictor.predict_many([a_request(number)[1] for number in range(12)], max_new_tokens=LONGEST)

    def answer(number: int) -> tuple[str, str, list[float]]:
        scored = {"logprobs": True, "top_logprobs": 2}
        if number % 2:
            choices = [chunk.choices[0] for chunk in ask(server, number, stream=True, **scored)]
            said = "".join(choice.delta.content or "" for choice in choices)
            tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content or ()]
            return said, choices[-1].finish_reason, [token.logprob for token in tokens]
        (choice,) = ask(server, number, **scored).choices
        return choice.message.content, choice.finish_reason, [token.logprob for token in choice.logprobs.content]

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(answer, range(12)))
    for number, (said, reason, logprobs) in enumerate(found):
        one = wanted[number]
        assert (said, reason) == (one.text, "length" if one.truncated else "stop"), number
        assert len(logprobs) == len(one.token_ids)


def test_log_probabilities_are_those_of_our_own_server(server: ChatServer, predictor: Predictor) -> None:
    scored = {"logprobs": True, "top_logprobs": 3, "max_tokens": 8}
    far = ask(server, 3, **scored)
    with serving(predictor) as own:
        ours = ask(own, 3, **scored)
    assert far.usage == ours.usage
    for one, other in zip(far.choices[0].logprobs.content, ours.choices[0].logprobs.content, strict=True):
        assert one.token == other.token and abs(one.logprob - other.logprob) < 1e-3
        assert [top.token for top in one.top_logprobs] == [top.token for top in other.top_logprobs]


def test_a_client_that_leaves_ends_the_work_there(server: ChatServer) -> None:
    far = server.app.engine.far  # type: ignore[attr-defined]
    with ask(server, 1, stream=True, max_tokens=300) as stream:
        next(iter(stream))
    until = time.monotonic() + 60
    while _running(far.url) and time.monotonic() < until:
        time.sleep(0.05)
    assert _running(far.url) == 0 and server.app.engine.running == 0
    assert ask(server, 1).choices


def _running(url: str) -> float:
    """Number of requests that vLLM is at."""
    lines = httpx.get(f"{url.removesuffix('/v1')}/metrics", timeout=30).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running{"))


# -- the whole model in vLLM ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A path on which vLLM's Python finds the package and its entry points, as if it were installed."""
    vllm_program()
    place = tmp_path_factory.mktemp("installed")
    about = place / "mg_llava-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mg_llava\nVersion: 0\n")
    (entry,) = re.findall(r'"vllm.general_plugins": \["(.+)"\]', (ROOT / "setup.py").read_text())
    (about / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{entry}\n")
    return f"{ROOT}{os.pathsep}{place}"


@pytest.fixture(scope="module")
def folder(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-alone folder of the miniature."""
    vllm_program()
    made = tmp_path_factory.mktemp("folder")
    torch.save({"state_dict": predictor.model.state_dict()}, made / "iter_1.pth")
    with at_root():
        done = run_command(
            "convert", made / "iter_1.pth", made / "model", "--to", "hf", "--standalone", "--config", CONFIG
        )
    assert done.status == 0, done.err
    return made / "model"


def test_the_plugins_processor_gives_ids_and_keys(folder: Path, installed: str, predictor: Predictor) -> None:
    """Boxes are part of a picture's key, each of its own picture alone, and change the number of its tokens."""
    script = ROOT / "tests" / "inference" / "vllm_process.py"
    python = str(vllm_program().parent / "python")
    given = [[None, None], [BOXES, None], [BOXES[:1], BOXES], [None, BOXES], [[], None]]
    files = [folder.parent / "turned.png", folder.parent / "clear.png"]
    exif = Image.Exif()
    exif[0x0112] = 6
    a_picture(2).save(files[0], exif=exif)
    Image.merge("RGBA", (*a_picture(3).split(), a_picture(4).split()[0])).save(files[1])
    done = subprocess.run(
        [python, script, folder, json.dumps(given), *files],
        env=variables(PYTHONPATH=installed),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, seen = json.loads(done.stdout.splitlines()[-1])
    process = predictor.front_end.picture_processor
    ours = [process(load_picture(file, "file"), None).pixels.numpy().tobytes() for file in files]
    assert seen == [hashlib.sha256(pixels).hexdigest() for pixels in ours]
    pictures, turns = [a_picture(0), a_picture(1)], [("human", "<image>\n<image>\nWhat is there?")]
    keys = [one["keys"] for one in found]
    for boxes, one in zip(given, found, strict=True):
        wanted = predictor.predict_many([Request(turns, pictures, [own or [] for own in boxes])], max_new_tokens=1)[0]
        assert one["length"] == wanted.prompt_tokens
    assert len({first for first, _ in keys}) == 4 and len({second for _, second in keys}) == 2
    assert keys[0][1] == keys[1][1] == keys[4][1] and keys[2][1] == keys[3][1] and keys[0][0] == keys[3][0]


def test_a_folder_is_served_by_a_stock_vllm(folder: Path, installed: str, predictor: Predictor) -> None:
    """Greedy ids about pictures, with boxes and without, are those of our own generation."""
    numbers = [number for number in range(12) if number % 3]
    wanted = predictor.predict_many([a_request(number)[1] for number in numbers], max_new_tokens=LONGEST)
    options = ("--trust-request-mm-kwargs", "--limit-mm-per-prompt", '{"image": 2}')
    with vllm_serving(folder, folder.parent / "vllm.log", *options, PYTHONPATH=installed) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", timeout=300)

        def answer(number: int) -> tuple[list[int], int]:
            messages, _ = a_request(number)
            boxes = {"boxes": [BOXES[: number % 4 // 2 * 2]] * (number % 3)}
            extra = {"mm_processor_kwargs": boxes, "return_token_ids": True}
            for part in messages[0]["content"]:
                part.get("image_url", {}).pop("boxes", None)  # a field of our server
            reply = client.chat.completions.create(
                model=str(folder), messages=messages, max_tokens=LONGEST, temperature=0, extra_body=extra
            )
            assert reply.usage is not None and reply.choices[0].model_extra is not None
            return reply.choices[0].model_extra["token_ids"], reply.usage.prompt_tokens

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(answer, numbers))
    ends = predictor.front_end.stops.ids
    for number, (ids, length), one in zip(numbers, found, wanted, strict=True):
        said = ids[:-1] if ids and ids[-1] in ends else ids
        assert (said, length) == (list(one.token_ids), one.prompt_tokens), number
