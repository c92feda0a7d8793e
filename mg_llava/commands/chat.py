r"""Talk with a trained model in the terminal; answers come word by word.

At the prompt: /image PATH shows a picture or a video, /boxes FILE (or none, or find) gives the last one its boxes
(files as for predict), /set NAME VALUE changes generation (temperature, max_new_tokens, ...), /save FILE writes the
conversation, /reset begins anew, /quit ends. Ctrl-C stops an answer. Lines of a pipe are questions, too; with --json
each answer is a line of JSON. In a question <box:0> stands for the coordinates of the first box, and <object:0> for
its object image where the model reads some; coordinates may be typed as well.

Examples:
    mg-llava chat CONFIG.py --checkpoint iter_250.pth --image a.jpg --proposals
    mg-llava chat FOLDER --image a.jpg --boxes boxes.json --question "What is there?" --json
    printf 'What is there?\nHow many?\n' | mg-llava chat user/model --image a.jpg --json

Exit status: 0 ended, 1 something could not be read or does not fit, 2 wrong arguments.
"""

import argparse
import ast
import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from mg_llava.commands._model import add_model_arguments, build_predictor, read_boxes

_HELP = "/image PATH   /boxes FILE|none|find   /set NAME VALUE   /save FILE   /reset   /quit"
_CONTROL = {code: None for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}
"""Characters that a terminal obeys; a model's words are words."""


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser, max_new_tokens=512, boxes=True)
    parser.add_argument(
        "--image", action="append", default=[], help="picture, or a video, to begin with; repeat for several"
    )
    parser.add_argument("--question", help="ask this alone, and end")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 for the likeliest words (default)")
    parser.add_argument("--seed", type=int, help="of random numbers")
    parser.add_argument("--json", action="store_true", help="print each answer with its boxes as a line of JSON")
    arguments = parser.parse_args()
    if arguments.boxes and len(arguments.image) != 1:
        parser.error("--boxes needs exactly one --image")
    return arguments


class Chat:
    """Lines of a user to a conversation.

    Args:
        conversation: Goes on.
        as_json: Print answers as JSON, whole.
    """

    def __init__(self, conversation: Any, as_json: bool) -> None:
        self.conversation, self.as_json = conversation, as_json

    def take(self, line: str) -> bool:
        """Obey a line; whether to go on.

        Raises:
            OSError: A file cannot be opened.
            ValueError: The line cannot be obeyed.
        """
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if name in ("/quit", "/exit"):
            return False
        if not name:
            return True
        if not name.startswith("/"):
            self._ask(line.strip())
        elif name == "/image":
            self._show(rest)
        elif name == "/boxes":
            known: dict[str, Any] = {"none": [], "find": None}
            self.conversation.set_boxes(
                known[rest] if rest in known else read_boxes(rest, self.conversation.pictures[-1:])
            )
        elif name == "/set":
            self._set(*rest.partition(" ")[::2])
        elif name == "/save":
            if not rest:
                raise ValueError("/save needs the name of a file")
            self.conversation.save(rest)
        elif name == "/reset":
            self.conversation.reset()
        else:
            raise ValueError(f"unknown command {name}; there are {_HELP}")
        return True

    def _show(self, path: str) -> None:
        from mg_llava.data.inputs import open_shown

        open_shown([path], 1, "the conversation")
        self.conversation.show(path)

    def _set(self, name: str, value: str) -> None:
        from mg_llava.models.generation import Decoding

        try:
            parsed = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            parsed = value.strip()
        changed = {**self.conversation.generation, name: parsed}
        changed["do_sample"] = bool(changed.get("temperature"))
        checked = {key: value for key, value in changed.items() if key != "stop"}
        try:
            Decoding.of(self.conversation.predictor.model.llm, checked)
        except TypeError as error:
            raise ValueError(f"{name} cannot be {value!r}") from error
        self.conversation.generation = changed

    def _ask(self, question: str) -> None:
        pieces = self.conversation.ask(question)
        with contextlib.closing(pieces):
            for piece in pieces:
                if not self.as_json:
                    print(piece.translate(_CONTROL), end="", flush=True)
        if self.as_json:
            print(json.dumps({"question": question, **self.conversation.answer.to_dict()}), flush=True)
        else:
            print()


def converse(chat: Chat, lines: Iterator[str], is_terminal: bool) -> int:
    """Take lines to their end. At a terminal an error is said and the next line is asked for."""
    try:
        for line in lines:
            try:
                if not chat.take(line):
                    break
            except (OSError, ValueError) as error:
                print(f"error: {error}", file=sys.stderr)
                if not is_terminal:
                    return 1
            except KeyboardInterrupt:
                print("\nstopped; the question is forgotten", file=sys.stderr)
                if not is_terminal:
                    raise
    except KeyboardInterrupt:
        if not is_terminal:
            raise
        print()
    return 0


def _typed() -> Iterator[str]:
    """Lines that are typed at the prompt, with the terminal's editing."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401

    print(_HELP, file=sys.stderr)
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def main() -> int:
    """Build the predictor and talk."""
    arguments = parse_arguments()
    try:
        boxes = read_boxes(arguments.boxes, arguments.image) if arguments.boxes else None
        predictor = build_predictor(arguments)
        from mg_llava.inference.conversation import Conversation

        given = {"temperature": arguments.temperature or None, "seed": arguments.seed}
        conversation = Conversation(predictor, do_sample=bool(arguments.temperature), **given)
        chat = Chat(conversation, arguments.json)
        for path in arguments.image:
            chat.take(f"/image {path}")
        if boxes is not None:
            conversation.set_boxes(boxes)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.question is not None:
        return converse(chat, iter([arguments.question]), False)
    is_terminal = sys.stdin.isatty()
    return converse(chat, _typed() if is_terminal else iter(sys.stdin), is_terminal)
