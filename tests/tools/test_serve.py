"""The command that serves a model: it says where, answers the official client, and ends at Ctrl-C."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from openai import OpenAI

from tests.inference.serving_toys import a_picture, image, text, user

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_server_answers_until_it_is_told_to_end(files: dict[str, str], ending: signal.Signals) -> None:
    command = [sys.executable, "tools/serve.py", files["config"], "--checkpoint", files["checkpoint"], "--port", "0"]
    with subprocess.Popen([*command, "--proposals"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = next(line for line in server.stdout if line.startswith("serving mg-llava at ")).split()[-1]
        asked = user(image(a_picture()), text("what?"))
        with OpenAI(base_url=url, api_key="none", timeout=60) as client:
            reply = client.chat.completions.create(model="mg-llava", messages=asked, max_tokens=3)
            assert reply.usage is not None and reply.usage.completion_tokens <= 3
            stream = client.chat.completions.create(model="mg-llava", messages=asked, max_tokens=400, stream=True)
            next(iter(stream))
            server.send_signal(ending)
            assert server.wait(60) in (0, -ending)
