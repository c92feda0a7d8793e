"""Sample answers while a model trains: the quickest way to see whether it learns what it should."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log

from mg_llava.data.config import trained_length
from mg_llava.engine.hooks import unwrap_model
from mg_llava.models.positions import take_positions
from mg_llava.registry import HOOKS

if TYPE_CHECKING:
    from mg_llava.inference import Predictor

SAMPLE_KEYS = {"question", "image", "boxes"}


@HOOKS.register_module()
class SampleGenerationHook(Hook):
    """Lets the model answer fixed questions before, during and after training.

    Answers are logged and appended to a JSON-lines file in the work directory. They come from the predictor that chat
    and evaluation use. Every process generates, because with ZeRO-3 each of them holds a part of the weights.

    Args:
        tokenizer: Tokenizer of the LLM, its folder, or the config of one.
        template: Prompt template, as for the dataset.
        picture_processor: ``PictureProcessor`` of the dataset, or its config.
        samples: Dicts with ``question`` and, optionally, ``image`` (path of a picture, or several) and ``boxes``:
            (n, 4) xyxy in original pixels. Pictures come first where the question does not place them.
        every_n_iters: Iterations between two rounds; None for none during training.
        max_new_tokens: Limit of an answer.
        system: System text before the question.
        file_name: File in the work directory; None for none.
        **generation: Further arguments of the predictor's generation.

    Raises:
        ValueError: If a sample has no question or an unknown key.
    """

    priority = "LOW"

    def __init__(
        self,
        tokenizer: Any,
        template: Any,
        picture_processor: Any,
        samples: Sequence[Mapping[str, Any]],
        every_n_iters: int | None = None,
        max_new_tokens: int = 100,
        system: str = "",
        file_name: str | None = "samples.jsonl",
        **generation: Any,
    ) -> None:
        for number, sample in enumerate(samples):
            if "question" not in sample or not set(sample) <= SAMPLE_KEYS:
                raise ValueError(
                    f"samples[{number}] has the keys {sorted(sample)}; 'question' is needed, 'image' and 'boxes' are "
                    "allowed"
                )
        self.parts = {"tokenizer": tokenizer, "template": template, "picture_processor": picture_processor}
        self.samples = [dict(sample) for sample in samples]
        self.every_n_iters = every_n_iters
        self.system = system
        self.file_name = file_name
        self.generation = {"max_new_tokens": max_new_tokens, **generation}
        self._predictor: Predictor | None = None

    def before_train(self, runner: Any) -> None:
        """Generate with the weights training starts from."""
        self._generate(runner, runner.iter)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Generate every ``every_n_iters`` iterations, the last excepted: ``after_train`` follows it."""
        due = self.every_n_iters is not None and self.every_n_train_iters(runner, self.every_n_iters)
        if due and not self.is_last_train_iter(runner):
            self._generate(runner, runner.iter + 1)

    def after_train(self, runner: Any) -> None:
        """Generate with the final weights."""
        self._generate(runner, runner.iter)

    def _generate(self, runner: Any, iteration: int) -> None:
        from mg_llava.inference import Request
        from mg_llava.models.generation import evaluating

        model = unwrap_model(runner.model)
        precision = getattr(runner.optim_wrapper, "optim_context", lambda _: nullcontext())  # DeepSpeed has none
        requests = [Request(s["question"], s.get("image"), s.get("boxes"), str(i)) for i, s in enumerate(self.samples)]
        device = next(model.parameters()).device
        drawing = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])  # training does not notice
        with drawing, evaluating(model), torch.no_grad(), precision(model):
            predictor = self._predictor_of(model)
            take_positions(model.llm.config, trained_length(getattr(runner, "cfg", {})))
            answers = predictor.predict_many(requests, workers=1)
        for sample, answer in zip(self.samples, answers, strict=True):
            self._report(runner, {"iteration": iteration, **sample, "answer": answer.text})

    def _predictor_of(self, model: Any) -> "Predictor":
        from mg_llava.inference import Predictor

        if self._predictor is None:
            self._predictor = Predictor(model, **self.parts, system=self.system, **self.generation)
        return self._predictor

    def _report(self, runner: Any, record: dict[str, Any]) -> None:
        picture = f" [{record['image']}]" if "image" in record else ""
        print_log(
            f"Sample at iteration {record['iteration']}:{picture} {record['question']!r} -> {record['answer']!r}",
            logger="current",
        )
        if self.file_name is not None and is_main_process():
            with open(Path(runner.work_dir) / self.file_name, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False, default=_to_plain) + "\n")


def _to_plain(value: Any) -> Any:
    """Arrays as lists, anything else as text, for JSON."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
