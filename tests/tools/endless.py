"""``python endless.py COMMAND ...``: as ``mg-llava COMMAND ...``, but no answer ends by itself.

For tests that stop one: it is at work whenever they come to it.
"""

import sys
from dataclasses import replace

from mg_llava.work.interrupts import end_at_once

end_at_once()  # before all other imports, as in a command

from mg_llava import commands  # noqa: E402
from mg_llava.inference import answering  # noqa: E402
from mg_llava.models.generation import generate  # noqa: E402


def generate_on(llm, prompt, decoding, limits, stop, *more):
    """As ``generate``, without end tokens, limits and stop words."""
    return generate(llm, prompt, replace(decoding, ends=frozenset()), [sys.maxsize] * len(limits), None, *more)


if __name__ == "__main__":
    answering.generate = generate_on
    sys.exit(commands.main())
