"""Findings of a run: boxes for each picture as the paper's table 6 has them, classes, failures."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from mg_llava.data.boxes._reader import Problems

_BINS = {"0": 0, "1-10": 10, "11-20": 20, "21-30": 30, "31-50": 50, ">50": float("inf")}
_SHOWN = 20
_EXAMPLES = 5


class BoxTally:
    """Counts over different pictures (boxes) and over the input's keys (failures).

    Attributes:
        keys: Number of keys.
        unknown: Keys whose pictures a file of boxes lacks.
    """

    def __init__(self) -> None:
        self.keys = 0
        self.unknown: list[str] = []
        self._raw: Counter[str] = Counter(dict.fromkeys(_BINS, 0))
        self._kept: Counter[str] = Counter(dict.fromkeys(_BINS, 0))
        self._classes: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = defaultdict(list)
        self._boxes = self._untagged = 0

    def add(self, result: Mapping[str, Any]) -> None:
        """Count a picture that was looked at."""
        if "error" in result:
            return
        self._raw[_bin(len(result["labels"]))] += 1
        self._kept[_bin(result["kept"])] += 1
        self._classes.update(label for label in result["labels"] if label)
        self._boxes += len(result["labels"])
        self._untagged += result["tags"] == 0

    def add_failure(self, line: Mapping[str, Any]) -> None:
        """Count a line of the ledger."""
        self._faults[line["fault"]] += line["pictures"]
        self._examples[line["fault"]].append(line["reason"])
        del self._examples[line["fault"]][_EXAMPLES:]

    def report(
        self, name: str, different: int, counts: Mapping[str, Any], problems: Problems, repeated: int
    ) -> dict[str, Any]:
        """All of it as plain values."""
        looked_at = self._raw.total()
        return {
            "pipeline": name,
            "keys": self.keys,
            "records": counts["records"],
            "repeated_keys": repeated,
            "conflicting_keys": len(problems),
            "conflicts": problems.messages[:_EXAMPLES],
            "different_pictures": different,
            "boxes": self._boxes,
            "boxes_per_picture": round(self._boxes / looked_at, 2) if looked_at else 0.0,
            "histogram": dict(self._raw),
            "histogram_after_filter": dict(self._kept),
            "without_tags": self._untagged,
            "not_in_file": len(self.unknown),
            "not_in_file_examples": self.unknown[:_EXAMPLES],
            "classes": len(self._classes),
            "most_frequent": dict(self._classes.most_common(_SHOWN)),
            "failed": self._faults.total(),
            "failures": dict(self._faults.most_common()),
            "failure_examples": self._examples,
        }


def format_report(report: Mapping[str, Any]) -> str:
    """The report as a table for people."""
    rows = {
        "boxes of a picture": list(report["histogram"]),
        "as found": report["histogram"].values(),
        "after NMS 0.2 and cap 100": report["histogram_after_filter"].values(),
    }
    lines = [
        "{pipeline}: {keys} keys, {different_pictures} different pictures, {boxes} boxes of {classes} classes "
        "({boxes_per_picture} a picture)".format(**report),
        *(f"{title:<28}" + "".join(f"{cell:>9}" for cell in cells) for title, cells in rows.items()),
    ]
    if report["without_tags"]:
        lines.append(f"{report['without_tags']} pictures had no tags to look for")
    if report["not_in_file"]:
        examples = ", ".join(map(repr, report["not_in_file_examples"]))
        lines.append(
            f"warning: {report['not_in_file']} pictures are not in the file of boxes and have none, such as {examples}"
        )
    if report["conflicting_keys"]:
        lines.append(f"{report['conflicting_keys']} keys name different pictures; the last one counts")
    if report["most_frequent"]:
        lines.append("most frequent: " + ", ".join(f"{k} {v}" for k, v in report["most_frequent"].items()))
    for fault, count in report["failures"].items():
        lines.append(f"{count} failed ({fault}), such as: {report['failure_examples'][fault][0]}")
    return "\n".join(lines)


def _bin(count: int) -> str:
    return next(name for name, highest in _BINS.items() if count <= highest)
