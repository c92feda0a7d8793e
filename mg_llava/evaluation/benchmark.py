"""The parts of a benchmark: questions with their prompts and pictures, the form of a prediction, and a scorer.

Imports neither torch nor mmengine, so that scoring needs neither; this is why benchmarks have a registry of their own.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from mg_llava.evaluation.judging.protocol import JudgeProtocol
from mg_llava.evaluation.release import Release
from mg_llava.evaluation.scoring.files import naming_files
from mg_llava.evaluation.scoring.joining import Line, ScoreResult

if TYPE_CHECKING:
    from PIL import Image

    from mg_llava.data.pictures.processor import PictureProcessor
    from mg_llava.data.text.coordinates import BoxText

QuestionId = str | int
Prediction = dict[str, Any]
KIND_PREFIX = "mg_llava."
FAMILIES = "mg_llava.evaluation.families"


@dataclass(frozen=True)
class Question:
    """One question to the model.

    Attributes:
        id: What predictions are joined on, as the data file has it.
        text: The whole prompt without the picture placeholder, suffix included.
        picture: Opens the picture (decoded, in the mode of the file); None for a question without one. Raises
            ``PictureError`` that names the file and the question.
        picture_key: The same for all questions about one picture, so that it is encoded once.
        box_key: Where the box store has its boxes.
        fields: What else the scorer wants on the prediction line, such as category or prompt.
        frames: Number of frames where ``picture`` yields a list of video frames; None for a still picture.
        objects: What ``<box:i>`` and ``<object:i>`` in the text stand for, as in a request.
    """

    id: QuestionId
    text: str
    picture: "Callable[[], Image.Image | list[Image.Image]] | None" = None
    picture_key: str | None = None
    box_key: QuestionId | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    frames: int | None = None
    objects: Sequence[Any] = ()


class Benchmark(ABC):
    """A data file in the benchmark's own format, the prompts made of it and the rules that score the replies.

    Args:
        data: The benchmark's files or folders, as ``tools/score.py --data`` takes them.
        image_folder: Where pictures lie that are not inside of the data file (see ``data.pictures.places``).
        name: Name in tables and results; the class's ``scorer`` by default.
        prompt: Name of the prompt version; the first of ``prompts`` by default.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file is malformed (the message names file and row), or the prompt is unknown.
    """

    scorer: ClassVar[str]
    """Name of the scorer, as ``tools/score.py`` has it."""
    form: ClassVar[str] = ""
    """For the help of ``tools/score.py``: what ``--data`` and the prediction lines are."""
    load: "ClassVar[staticmethod[..., Any]]"
    """Reads the data files into annotations; raises ``ValueError`` that names the file and the row."""
    rate: "ClassVar[staticmethod[..., ScoreResult]]"
    """Scores prediction lines against annotations by every rule that applies."""
    judge: ClassVar[JudgeProtocol | None] = None
    """How a judge grades the replies, where one does."""
    releases: ClassVar[tuple[Release, ...]] = ()
    """Published data sets."""
    prompts: ClassVar[tuple[str, ...]] = ("reference",)
    """Prompt versions, the default first."""
    id_field: ClassVar[str] = "index"
    """Key of the question's id on a prediction line."""
    text_field: ClassVar[str] = "prediction"
    """Key of the reply on a prediction line."""
    headline: ClassVar[tuple[str, str]] = ("reference", "accuracy")
    """Rule and metric that tables quote."""
    max_new_tokens: ClassVar[int] = 100
    text: "BoxText | None" = None
    """How boxes in replies are written; None for a benchmark without, and for what the model was trained with."""
    is_open: bool = False
    """Whether they are read as the model was trained to write them."""
    frames: int | None = None
    """Of each video; None for a benchmark without, and for as many as the model was trained with."""
    has_open_frames: bool = False
    """Whether they are as many as the model was trained with."""

    def __init__(
        self,
        data: str | Path | Sequence[str | Path],
        image_folder: str | Path | None = None,
        name: str | None = None,
        prompt: str | None = None,
    ) -> None:
        self.data = [Path(data)] if isinstance(data, str | Path) else [Path(item) for item in data]
        for path in self.data:
            if not path.exists():
                raise FileNotFoundError(f"{type(self).__name__}: {path} does not exist")
        self.image_folder = os.fspath(image_folder) if image_folder is not None else None
        self.name = name or self.scorer
        self.prompt = prompt or self.prompts[0]
        if self.prompt not in self.prompts:
            raise ValueError(f"{self.name}: prompt {self.prompt!r} is unknown; known are {', '.join(self.prompts)}")

    @abstractmethod
    def questions(self) -> Sequence[Question]:
        """All questions, in the order of the data file; pictures are opened when they are asked for."""

    def prediction(self, question: Question, text: str) -> Prediction:
        """The line of the predictions file for a reply, in the form that ``tools/score.py`` reads."""
        return {self.id_field: question.id, **question.fields, self.text_field: text}

    def score(self, predictions: Sequence[Line], **options: Any) -> ScoreResult:
        """Score prediction lines by every rule that applies; see ``score.score_predictions``."""
        return {"benchmark": self.scorer, **self.score_files(self.data, predictions, **options)}

    @classmethod
    def score_files(cls, data: Sequence[Path], predictions: Sequence[Line], **options: Any) -> ScoreResult:
        """Score prediction lines against data files.

        Raises:
            ValueError: A file is malformed, or there is no such option.
        """
        _, _, *known = (one for one in signature(cls.rate).parameters.values() if one.kind is not one.VAR_KEYWORD)
        for name in sorted(options.keys() - {one.name for one in known}):
            listed = ", ".join(one.name for one in known) or "none"
            raise ValueError(f"{cls.scorer} has no option {name!r}; known are: {listed}")
        with naming_files(data, f"{cls.scorer}: {cls.form}"):
            loaded = cls.load(data)
        return cls.rate(loaded, predictions, **options)

    def follow(self, pictures: "PictureProcessor") -> None:
        """Do as a model's training did, where the benchmark was not told otherwise."""
        self.use_box_text(pictures.regions.box_text)
        self.use_frames(pictures.video.frames)

    def use_box_text(self, writing: "BoxText") -> None:
        """Read boxes of replies as a model writes them, where there are any and the benchmark was not told how."""
        if self.is_open:
            self.text = writing

    def use_frames(self, frames: int) -> None:
        """Show as many frames of a video as a model was trained with, where the benchmark was not told how many."""
        if self.has_open_frames:
            self.frames = frames

    @property
    def identity(self) -> dict[str, Any]:
        """What replies depend on beside the data and the questions, as plain values."""
        return {"type": type(self).__name__, "prompt": self.prompt}

    def picture_folder(self, default: str = "") -> str:
        """``image_folder``, or else a folder beside the data."""
        beside = self.data[0] if self.data[0].is_dir() else self.data[0].parent
        return self.image_folder or str(beside / default)

    def ask(
        self,
        number: QuestionId,
        text: str,
        name: str,
        folder: str = "",
        *,
        owner: str = "",
        box_key: QuestionId | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> Question:
        """A question about the picture ``name`` in :meth:`picture_folder`; ``owner`` names it in messages."""
        opener = partial(open_in_folder, self.picture_folder(folder), name, owner or f"question {number}")
        return Question(number, text, opener, name, number if box_key is None else box_key, fields or {})


def open_in_folder(folder: str | Path, name: str, owner: str) -> "Image.Image":
    """Open a picture; the ``PictureError`` of one that is bad or outside of the folder names it and its owner."""
    from mg_llava.data.pictures.files import open_picture, picture_path

    return open_picture(picture_path(str(folder), name, owner, advice="give a folder that holds it"), owner)


Class = TypeVar("Class", bound=type[Benchmark])


class Benchmarks:
    """All benchmarks by the names of their classes; the families are imported at the first look-up."""

    def __init__(self) -> None:
        self._kinds: dict[str, type[Benchmark]] = {}
        self._is_complete = False

    def register(self, kind: Class) -> Class:
        """Decorator of a class.

        Raises:
            ValueError: Another class has the name.
        """
        known = self._kinds.setdefault(kind.__name__, kind)
        if known.__module__ != kind.__module__:
            raise ValueError(f"two benchmarks are called {kind.__name__}: in {known.__module__}, {kind.__module__}")
        self._kinds[kind.__name__] = kind
        return kind

    @property
    def kinds(self) -> Mapping[str, type[Benchmark]]:
        """Classes by name."""
        if not self._is_complete:
            for module in iter_modules(import_module(FAMILIES).__path__, f"{FAMILIES}."):
                import_module(module.name)
            self._is_complete = True
        return self._kinds

    @property
    def scorers(self) -> dict[str, type[Benchmark]]:
        """Classes by the name of their scorer."""
        return {kind.scorer: kind for kind in self.kinds.values() if "scorer" in vars(kind) and hasattr(kind, "rate")}

    @property
    def releases(self) -> dict[str, tuple[type[Benchmark], Release]]:
        """Published data sets by name, each with its class."""
        own = ((kind, release) for kind in self.kinds.values() for release in vars(kind).get("releases", ()))
        return {release.name: (kind, release) for kind, release in own}

    def get(self, name: str) -> type[Benchmark]:
        """A class by its name, with or without the scope or the module before it.

        Raises:
            KeyError: No class has the name; the message has the nearest and all known ones.
        """
        module, _, last = name.rpartition(".")
        if last not in self.kinds and module and f"{module}." != KIND_PREFIX:
            import_module(module)
        if last not in self.kinds:
            near = get_close_matches(last, self.kinds, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise KeyError(f"{name!r} is no known benchmark{hint} (known: {', '.join(sorted(self.kinds))})")
        return self.kinds[last]

    def build(self, config: Mapping[str, Any]) -> Benchmark:
        """A benchmark of a config: ``type``, a class or its name, and the arguments of the class."""
        settings = dict(config)
        kind = settings.pop("type")
        return (self.get(kind) if isinstance(kind, str) else kind)(**settings)


BENCHMARKS = Benchmarks()
