"""An lmms-eval model over the predictor, so that its tasks run on MG-LLaVA's checkpoints (extra ``lmms``).

lmms-eval finds it by the entry point ``lmms_eval.models``: ``python -m lmms_eval --model mg_llava --model_args
config=CONFIG.py,checkpoint=iter_1000.pth --tasks mmstar --batch_size 8``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from PIL import Image

try:
    from lmms_eval.api.model import lmms
except ImportError as error:
    raise ImportError("the adapter needs lmms-eval: pip install 'mg_llava[lmms]'") from error

from mg_llava.evaluation.benchmark import Question
from mg_llava.evaluation.box_source import build_box_source
from mg_llava.evaluation.identity import hash_checkpoint, hash_config
from mg_llava.inference import Answer, Predictor, Request
from mg_llava.models.weights.folders import find_folder
from mg_llava.tokens import IMAGE_PLACEHOLDER

NAME = "mg_llava"
MAX_NEW_TOKENS = 1024
"""As in the other models of lmms-eval, for tasks that do not say."""
_PASSED_ON = ("do_sample", "temperature", "top_p", "num_beams", "max_new_tokens")


def manifest() -> Any:
    """The model's name and class, for lmms-eval's entry point."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(NAME, simple_class_path=f"{__name__}.{MGLLaVAModel.__name__}")


class MGLLaVAModel(lmms):
    """A checkpoint as a model of lmms-eval.

    Args:
        config: Training config, Hugging Face folder of ours, or hub id.
        checkpoint: With a config, what the training wrote.
        device: As for ``Predictor.from_pretrained``; each process of several takes its own GPU.
        batch_size: Questions at a time.
        boxes: ``none``, or ``proposals`` for the built-in proposal step; lmms-eval gives pictures no ids, so that
            box files have nothing to be looked up by unless they hold content hashes.
        box_path: A box file with content hashes (``tools/convert_boxes.py --images --records``); the proposal step,
            if any, is for pictures that are not in it.
        predictor: A predictor to use in place of config and checkpoint.
        **ignored: Settings that lmms-eval passes to every model.
    """

    is_simple = True

    def __init__(
        self,
        config: str = "",
        checkpoint: str = "",
        device: str | None = None,
        batch_size: int | str = 1,
        boxes: str = "none",
        box_path: str | None = None,
        predictor: Predictor | None = None,
        **ignored: Any,
    ) -> None:
        super().__init__()
        from mg_llava.detection.proposals import ConnectedComponentProposals
        from mg_llava.work.devices import pick_device

        if boxes not in ("none", "proposals"):
            raise ValueError(f"boxes={boxes!r}; allowed: none, proposals")
        if predictor is None:
            place = str(pick_device("auto" if device in (None, "cuda") else str(device)))
            predictor = Predictor.from_pretrained(config, checkpoint or None, place)
        self.predictor = predictor
        self.batch_size_per_gpu = int(batch_size) if str(batch_size).isdecimal() else 1
        proposer = ConnectedComponentProposals() if boxes == "proposals" else None
        spec = "detected" if proposer is not None or box_path else "none"
        self.source = build_box_source(spec, box_path, proposer)
        self._config = config
        self._files = [Path(path) for path in (checkpoint, box_path) if path]
        _key_cache_by(self.content_key)

    def content_key(self) -> str:
        """The same for the same content of config, checkpoint and box file."""
        own = []
        if self._config:
            is_file = Path(self._config).is_file()
            own = [
                hash_config(Config.fromfile(self._config)) if is_file else hash_checkpoint(find_folder(self._config))
            ]
        return "-".join([*own, *map(hash_checkpoint, self._files)])

    @property
    def batch_size(self) -> int:
        """Questions at a time."""
        return self.batch_size_per_gpu

    @property
    def device(self) -> Any:
        """Where the model is."""
        return self.predictor.model.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer lmms-eval's instances; a question that cannot be answered stops the evaluation."""
        groups: dict[str, list[int]] = {}
        for number, instance in enumerate(requests):
            groups.setdefault(json.dumps(_settings(instance.args[1]), sort_keys=True), []).append(number)
        texts: dict[int, str] = {}
        for settings, numbers in groups.items():
            stream = (self._request(requests[number]) for number in numbers)
            for batch in self.predictor.stream(stream, self.batch_size, **json.loads(settings)):
                for place, answer in batch:
                    texts[numbers[place]] = self._text(requests[numbers[place]], answer)
        return [texts[number] for number in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not supported."""
        raise NotImplementedError("tasks of several rounds are not supported; choose tasks of one")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not supported."""
        raise NotImplementedError("tasks that compare likelihoods are not supported; choose tasks that generate")

    def _request(self, instance: Any) -> Request:
        context, _, to_visual, doc_id, task, split = instance.args
        visuals = to_visual(self.task_dict[task][split][doc_id]) or []
        owner = f"{task} {split} {doc_id}"
        pictures = [_picture(visual, owner) for visual in visuals]
        text = context.replace(IMAGE_PLACEHOLDER, "").strip()
        questions = [Question(f"{owner}#{i}", text) for i in range(len(pictures))]
        found = [self.source.look_up(*asked) for asked in zip(questions, zip(pictures), strict=True)]
        boxes: Any = [record for one in found for record in one.boxes]
        return Request(text, pictures, boxes[0] if len(boxes) == 1 else boxes or None, owner)

    def _text(self, instance: Any, answer: Any) -> str:
        if not isinstance(answer, Answer):
            raise answer
        ends = instance.args[1].get("until") or []
        cuts = [answer.text.find(end) for end in ([ends] if isinstance(ends, str) else ends) if end]
        text = answer.text[: min((cut for cut in cuts if cut > 0), default=len(answer.text))]
        self.cache_hook.add_partial("generate_until", (instance.args[0], instance.args[1]), text)
        return text


def _key_cache_by(content_key: Callable[[], str]) -> None:
    """Let lmms-eval's cache of replies know files by their content: its own key has their paths alone.

    A checkpoint or a box file that was made anew under the old path would get the old replies.
    """
    try:
        from lmms_eval.caching.response_cache import ResponseCache
    except ImportError:  # a version without such a cache
        return
    create = getattr(ResponseCache.create, "plain", ResponseCache.create)

    def keyed(cache_root: str, *, model: str = "", **settings: Any) -> Any:
        name = f"{model}|{content_key()}" if model == NAME else model
        return create(cache_root, model=name, **settings)

    keyed.plain = create  # type: ignore[attr-defined]
    ResponseCache.create = keyed


def _picture(visual: Any, owner: str) -> Image.Image:
    if isinstance(visual, Image.Image):
        return visual
    raise TypeError(f"{owner}: a {type(visual).__name__} is not supported; choose tasks with pictures")


def _settings(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``generate`` from lmms-eval's."""
    settings = {key: asked[key] for key in _PASSED_ON if asked.get(key) is not None}
    if not settings.get("temperature"):
        settings["do_sample"] = False
    if not settings.get("do_sample"):
        settings = {key: value for key, value in settings.items() if key not in ("temperature", "top_p")}
    return {"max_new_tokens": MAX_NEW_TOKENS, **settings}
