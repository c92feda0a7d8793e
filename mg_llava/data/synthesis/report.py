"""What became of everything: pictures, objects, phrases, samples; every number adds up.

Shapes: S scenes, T tasks.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mg_llava.data.synthesis.screening import SourceTally
from mg_llava.data.synthesis.shares import Drawn
from mg_llava.data.synthesis.tasks import TASKS


@dataclass
class SynthesisReport:
    """Counts of a run.

    Attributes:
        settings: Of the run.
        reading: By source.
        wanted: Samples of each task that were asked for.
        counts: (S, T) int, samples that each scene has.
        sources: S names.
        drawn: The samples.
        written: Records of each task.
        characters: Of their questions and answers.
        reserved: The test pictures.
        rewriting: What became of texts that were to be rewritten; None where none were.
    """

    settings: Mapping[str, Any]
    reading: Mapping[str, SourceTally]
    wanted: Mapping[str, int]
    counts: np.ndarray
    sources: Sequence[str]
    drawn: Drawn
    written: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    reserved: Mapping[str, int] | None = None
    rewriting: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = list(TASKS)
        planned: Counter[tuple[str, str]] = Counter()
        for scene, samples in self.drawn:
            planned.update((names[task], self.sources[scene]) for task, _ in samples)
        tasks = {}
        for task, name in enumerate(names):
            by_source = {source: planned[name, source] for source in self.reading if planned[name, source]}
            there, drawn = int(self.counts[:, task].sum()), sum(by_source.values())
            tasks[name] = {
                "wanted": self.wanted[name],
                "there are": there,
                "drawn": drawn,
                "not drawn": there - drawn,
                "written": self.written[name],
                "by source": by_source,
                "mean characters": round(self.characters[name] / max(1, self.written[name]), 1),
            }
        return {
            "settings": dict(self.settings),
            "reserved": self.reserved,
            "sources": {name: tally.to_dict() for name, tally in self.reading.items()},
            "tasks": tasks,
            "planned": sum(task["drawn"] for task in tasks.values()),
            "records": self.written.total(),
            "rewriting": self.rewriting,
        }


def format_synthesis(report: Mapping[str, Any]) -> str:
    """The report for the terminal."""
    lines = [f"{'task':20}{'wanted':>10}{'there are':>12}{'drawn':>10}{'written':>10}"]
    for name, task in report["tasks"].items():
        numbers = (task["wanted"], task["there are"], task["drawn"], task["written"])
        lines.append(f"{name:20}{numbers[0]:>10}{numbers[1]:>12}{numbers[2]:>10}{numbers[3]:>10}")
    lines.append(f"{'all':20}{'':>22}{report['planned']:>10}{report['records']:>10}")
    for source, parts in report["sources"].items():
        for name, tally in parts.items():
            reasons = "; ".join(f"{count} {reason}" for reason, count in tally["dropped"].items())
            lines.append(f"{source}: {tally['kept']} of {tally['read']} {name}" + (f" ({reasons})" if reasons else ""))
    if report["reserved"]:
        lines.append("test pictures: " + ", ".join(f"{count} {name}" for name, count in report["reserved"].items()))
    return "\n".join(lines)
