"""The command that serves a model: it says where, answers the official client, and ends at Ctrl-C."""

import os
import signal

import pytest
from openai import OpenAI

from tests import forked
from tests.inference.serving_toys import a_picture, image, text, user
from tests.run import TOOLS


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_server_answers_until_it_is_told_to_end(files: dict[str, str], ending: signal.Signals) -> None:
    given = [files["config"], "--checkpoint", files["checkpoint"], "--port", "0", "--proposals"]
    with forked.serving(TOOLS / "serve.py", *given, said="serving mg-llava at ") as (server, url):
        asked = user(image(a_picture()), text("what?"))
        with OpenAI(base_url=url, api_key="none", timeout=60) as client:
            reply = client.chat.completions.create(model="mg-llava", messages=asked, max_tokens=3)
            assert reply.usage is not None and reply.usage.completion_tokens <= 3
            stream = client.chat.completions.create(model="mg-llava", messages=asked, max_tokens=400, stream=True)
            next(iter(stream))
            os.kill(server.pid, ending)
            server.join(60)
            assert server.exitcode in (0, -ending)
