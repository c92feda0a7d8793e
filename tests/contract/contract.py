"""What everything registered has to pass: it trains, saves, loads, converts, predicts and is planned.

Each step takes what the step before it left, so that a part that fails after hours of training fails here first.
"""

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from PIL import Image
from torch import Tensor

from mg_llava.conversion import TARGETS, ConversionOptions, convert
from mg_llava.data.collate import collate
from mg_llava.inference.predictor import Predictor
from mg_llava.models.counting import count_tokens
from mg_llava.models.losses.boxes import RefinementLoss
from mg_llava.models.systems.lyrics import Refined
from mg_llava.models.weights.checkpoint import load_training_checkpoint
from mg_llava.models.weights.parts import load_parts
from mg_llava.planning.flops import Sample, count_flops
from mg_llava.planning.memory import measure_activations, weigh
from mg_llava.planning.skeleton import build_skeleton
from mg_llava.registry import MODELS
from tests import toy
from tests.models.test_waiting import NoReads

MIXED = [(9, 1), (6, 0), (12, 2)]
"""Text ids and pictures of each sample."""
BOXES = (0, 1, 100)
"""Boxes of each picture."""
SEED = 3


class Contract:
    """The steps for one system; each raises an AssertionError that says what is broken.

    Args:
        model: Config of the system.
        paths: Folders of the toys.
        folder: Where to write.
    """

    def __init__(self, model: dict[str, Any], paths: dict[str, str], folder: Path) -> None:
        self.config = {
            "model": model,
            "tokenizer": {
                "type": "transformers.AutoTokenizer.from_pretrained",
                "pretrained_model_name_or_path": paths["llm"],
                "padding_side": "right",
            },
            "prompt_template": "vicuna",
        }
        self.folder = folder
        self.checkpoint = folder / "iter_1.pth"
        self.system = build(model)
        self.config["picture_processor"] = {
            "type": "mg_llava.PictureProcessor",
            "image_size": self.system.canvas_size,
        }

    def batch(self, samples: list[tuple[int, int]]) -> dict[str, Any]:
        """A batch as the data side makes it."""
        made = toy.make_batch(samples, canvas=self.system.canvas_size)
        return collate(toy.add_pieces(made) if isinstance(self.system, Refined) else made)["data"]

    # -- training ---------------------------------------------------------------------------------------------------

    def trains(self) -> None:
        """Every trained parameter has a gradient, whatever is in the batch, and nothing else has.

        The host reads no value meanwhile, but for the matching of objects, which is found on the host.
        """
        for samples in ([(9, 0), (5, 0)], MIXED):
            self.system.train()
            self.system.zero_grad(set_to_none=True)
            batch = self.batch(samples)
            with nullcontext() if any(isinstance(one, RefinementLoss) for one in self.system.losses) else NoReads():
                values = self.system(batch)
                loss = sum(value for name, value in values.items() if name.startswith("loss"))
                loss.backward()
            assert isinstance(loss, Tensor) and loss.isfinite(), f"no loss of {samples}: {values}"
            for name, parameter in self.system.named_parameters():
                has = parameter.grad is not None
                assert has == parameter.requires_grad, f"{name} has {'a' if has else 'no'} gradient for {samples}"
        self.system.eval()

    def counts(self) -> None:
        """``tokens_of`` is the number of tokens that placeholders get, and is known without weights."""
        canvas, boxes = self.pictures()
        with torch.no_grad():
            seeing = self.system.see({"canvas": canvas, "boxes": boxes})
            video = self.system.see({"canvas": canvas, "boxes": boxes, "media": [0, 0, 0]})
            frames = self.system.see({"canvas": canvas, "boxes": boxes, "frames": [True, False, True]})
        found = [sum(segment.length for segment in segments) for segments in (*seeing, *video)]
        of_frames, of_pictures = self.system.token_count.of_frames, self.system.token_count
        expected = [count(1, n) for count, n in zip((of_frames, of_pictures, of_frames), BOXES, strict=True)]
        assert [sum(segment.length for segment in segments) for segments in frames] == expected
        assert found[:3] == [self.system.tokens_of(1, count) for count in BOXES]
        assert found[3:] == [self.system.tokens_of(3, sum(BOXES))], "frames of a video share their placeholder"
        assert count_tokens(self.config["model"]) == self.system.token_count

    def computes(self) -> None:
        """Pictures are seen alone as in a batch, whatever their numbers of boxes, and nearly the same in bfloat16."""
        canvas, boxes = self.pictures()
        with torch.no_grad():
            together = self.system.see({"canvas": canvas, "boxes": boxes})
            halved = copy.deepcopy(self.system).bfloat16().see({"canvas": canvas, "boxes": boxes})
            for place, segments in enumerate(together):
                (alone,) = self.system.see({"canvas": canvas[place : place + 1], "boxes": boxes[place : place + 1]})
                for found, own, rough in zip(segments, alone, halved[place], strict=True):
                    torch.testing.assert_close(found.tokens, own.tokens, msg=lambda text: f"depends on others: {text}")
                    assert rough.tokens.isfinite().all() and rough.tokens.dtype == torch.bfloat16
                    error = (rough.tokens.float() - found.tokens).abs().sum()
                    assert error <= 0.1 * found.tokens.abs().sum(), f"{found.kind} tokens differ in bfloat16"

    def pictures(self) -> tuple[Tensor, list[Tensor]]:
        """Canvases with no box, with one, and with many."""
        size, generator = self.system.canvas_size, torch.Generator().manual_seed(SEED)
        canvas = torch.randint(0, 256, (len(BOXES), 3, size, size), generator=generator, dtype=torch.uint8)
        corners = [torch.rand(count, 4, generator=generator) * size / 2 for count in BOXES]
        return canvas, [torch.cat([item[:, :2], item[:, :2] + item[:, 2:]], dim=1) for item in corners]

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def saves(self) -> None:
        """What trains is saved, with values that no other model has, and loads with every key accounted for."""
        torch.manual_seed(SEED + 1)
        with torch.no_grad():
            for parameter in self.system.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        state = self.system.state_dict()
        trained = {name for name, parameter in self.system.named_parameters() if parameter.requires_grad}
        assert trained <= set(state), f"trained, but not saved: {sorted(trained - set(state))[:3]}"
        meta = {"iter": 1, "epoch": 0, "seed": 0, "cfg": Config(self.config).pretty_text}
        torch.save({"meta": meta, "state_dict": state, "optimizer": {}}, self.checkpoint)
        other = build(self.config["model"], seed=SEED + 2)
        report = load_parts(other, load_training_checkpoint(str(self.checkpoint), dtype=None), "checkpoint")
        assert not (report.missing or report.unknown or report.misshapen), str(report)
        assert_same(other.state_dict(), state)
        build({**self.config["model"], "pretrained_pth": str(self.checkpoint)})  # the next stage starts from it

    def converts(self, *targets: str) -> None:
        """The checkpoint goes into layouts and comes back bit by bit."""
        state = dict(self.system.state_dict())
        for target in targets:
            place = self.folder / (target if target in ("hf", "parts") else f"{target}.pth")
            convert(self.checkpoint, place, target)
            back = self.folder / f"from_{target}.pth"
            config = self.folder / "config.py"
            Config(self.config).dump(config)
            convert(place, back, "mmengine", ConversionOptions(config=config))
            assert_same(load_training_checkpoint(str(back), dtype=None), state)

    def exports(self) -> None:
        """The Hugging Face folder gives the same logits."""
        import mg_llava.hf

        if not (self.folder / "hf").exists():
            convert(self.checkpoint, self.folder / "hf", "hf")
        loaded = mg_llava.hf.MGLLaVAForConditionalGeneration.from_pretrained(
            self.folder / "hf", torch_dtype=torch.float32
        ).eval()
        batch = self.batch(MIXED)
        with torch.no_grad():
            expected = self.system(batch, mode="tensor")["logits"]
            found = loaded.model(batch, mode="tensor")["logits"]
        torch.testing.assert_close(found, expected)

    # -- use --------------------------------------------------------------------------------------------------------

    def predicts(self) -> None:
        """The predictor answers, and counts what the LLM reads of pictures and boxes."""
        predictor = Predictor.from_pretrained(Config(self.config), self.checkpoint, device="cpu", max_new_tokens=3)
        picture, tokens_of = Image.new("RGB", (40, 50), "red"), self.system.tokens_of
        bare, boxed, two = (
            predictor.predict(pictures, "What is there?", boxes=boxes)
            for pictures, boxes in (
                (picture, None),
                (picture, [[1, 2, 20, 30], [18, 25, 39, 49]]),
                ([picture, picture], None),
            )
        )
        assert_same(dict(predictor.model.state_dict()), dict(self.system.state_dict()))
        assert len(boxed.boxes) == 2 and not len(bare.boxes)  # a stand-in takes the place of no box
        assert boxed.prompt_tokens - bare.prompt_tokens == tokens_of(1, 2) - tokens_of(1, 1)
        line_break = 1
        assert two.prompt_tokens - bare.prompt_tokens == tokens_of(2, 2) - tokens_of(1, 1) + line_break

    def plans(self) -> None:
        """The planner builds it without weights, and counts its tokens, parameters and operations."""
        skeleton = build_skeleton(self.config["model"])
        sizes = {part.key: sum(p.numel() for p in module.parameters()) for part, module in self.system.named_parts()}
        assert {key: sum(p.numel() for p in part.parameters()) for key, part in skeleton.parts().items()} == sizes
        flops = count_flops(skeleton, Sample(text=10, boxes=2))
        assert flops.length == self.system.tokens_of(1, 2) + 10
        assert flops.forward.keys() == flops.training.keys()
        assert {part.key for part, _ in self.system.named_parts() if part.role != "connector"} <= flops.forward.keys()
        trained = sum(p.numel() for p in self.system.parameters() if p.requires_grad)
        assert weigh(skeleton).trained == trained
        assert measure_activations(skeleton, flops.length, 1).peak > 0

    def whole(self) -> None:
        """Every step, every layout."""
        self.trains()
        self.counts()
        self.computes()
        self.saves()
        self.converts(*(TARGETS if self.answers else [target for target in TARGETS if target not in ("hf", "parts")]))
        self.used()
        self.plans()

    @property
    def answers(self) -> bool:
        """Whether the system has an LLM, so that it can be asked."""
        return self.config["model"].get("llm") is not None

    def used(self) -> None:
        """What is done with a system that answers."""
        if self.answers:
            self.exports()
            self.predicts()

    def short(self) -> None:
        """Every step, for the Hugging Face folder alone."""
        self.trains()
        self.counts()
        self.computes()
        self.saves()
        self.used()
        self.plans()


def build(model: dict[str, Any], seed: int = SEED) -> Any:
    """The system of a config, with seeded weights."""
    torch.manual_seed(seed)
    return MODELS.build(model)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal names and bits."""
    assert set(found) == set(expected), f"{sorted(set(found) ^ set(expected))[:4]} are in one of the two alone"
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), f"{name} differs"
