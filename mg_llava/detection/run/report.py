"""What a run found: boxes for each picture as the paper's table 6 has them, classes, failures."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mg_llava.data.boxes._reader import Problems

_BINS = {"0": 0, "1-10": 10, "11-20": 20, "21-30": 30, "31-50": 50}
_LAST = ">50"
_SHOWN = 20
_EXAMPLES = 5


class Tally:
    """Counts over different pictures (boxes) and over the input's keys (failures)."""

    def __init__(self) -> None:
        self._raw: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()
        self._classes: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._keys = self._boxes = self._untagged = self._unknown = 0
        self._unknown_examples: list[str] = []

    def add(self, result: Mapping[str, Any]) -> None:
        """Count a picture that was looked at."""
        if "error" in result:
            return
        self._raw[_bin(len(result["labels"]))] += 1
        self._kept[_bin(result["kept"])] += 1
        self._classes.update(label for label in result["labels"] if label)
        self._boxes += len(result["labels"])
        self._untagged += result["tags"] == 0

    def count_keys(self, count: int) -> None:
        """Count keys of the input."""
        self._keys += count

    def count_unknown(self, key: str, is_known: bool) -> None:
        """Count a key whose picture a file of boxes lacks."""
        self._unknown += not is_known
        if not is_known and len(self._unknown_examples) < _EXAMPLES:
            self._unknown_examples.append(key)

    def add_failure(self, line: Mapping[str, Any]) -> None:
        """Count a line of the ledger."""
        self._faults[line["fault"]] += line["pictures"]
        examples = self._examples.setdefault(line["fault"], [])
        if len(examples) < _EXAMPLES:
            examples.append(line["reason"])

    def report(
        self, name: str, different: int, counts: Mapping[str, Any], problems: Problems, repeated: int
    ) -> dict[str, Any]:
        """All of it as plain values."""
        looked_at = sum(self._raw.values())
        return {
            "pipeline": name,
            "keys": self._keys,
            "records": counts["records"],
            "repeated_keys": repeated,
            "conflicting_keys": len(problems),
            "conflicts": problems.messages[:_EXAMPLES],
            "different_pictures": different,
            "boxes": self._boxes,
            "boxes_per_picture": round(self._boxes / looked_at, 2) if looked_at else 0.0,
            "histogram": {name: self._raw[name] for name in (*_BINS, _LAST)},
            "histogram_after_filter": {name: self._kept[name] for name in (*_BINS, _LAST)},
            "without_tags": self._untagged,
            "not_in_file": self._unknown,
            "not_in_file_examples": self._unknown_examples,
            "classes": len(self._classes),
            "most_frequent": dict(self._classes.most_common(_SHOWN)),
            "failed": self._faults.total(),
            "failures": dict(self._faults.most_common()),
            "failure_examples": self._examples,
        }


def format_report(report: Mapping[str, Any]) -> str:
    """The report as a table for people."""
    bins = list(report["histogram"])
    rows = [("boxes of a picture", bins)]
    for title, name in (("as found", "histogram"), ("after NMS 0.2 and cap 100", "histogram_after_filter")):
        rows.append((title, [str(report[name][part]) for part in bins]))
    lines = [
        f"{report['pipeline']}: {report['keys']} keys, {report['different_pictures']} different pictures, "
        f"{report['boxes']} boxes of {report['classes']} classes ({report['boxes_per_picture']} a picture)",
        *(f"{title:<28}" + "".join(f"{cell:>9}" for cell in cells) for title, cells in rows),
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
    return next((name for name, highest in _BINS.items() if count <= highest), _LAST)
