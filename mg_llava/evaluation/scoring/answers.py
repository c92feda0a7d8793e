"""Short free-form answers: how the official scripts normalize and compare them.

Where a script has a quirk, the quirk is kept and its comment says so: the figures have to be those of the script.
"""

import ast
import re
from collections.abc import Sequence

# Correct form, then the misspellings that are turned into it. Words are lowercased before the look-up, so that the
# capitalized entries of the official table ("Im", "Ive") can never match and are left out.
_CONTRACTIONS_TEXT = """
ain't aint; aren't arent; can't cant; could've couldve; couldn't couldnt; couldn't've couldn'tve couldnt've;
didn't didnt; doesn't doesnt; don't dont; hadn't hadnt; hadn't've hadnt've hadn'tve; hasn't hasnt; haven't havent;
he'd hed; he'd've hed've he'dve; he's hes; how'd howd; how'll howll; how's hows; isn't isnt; it'd itd;
it'd've itd've it'dve; it'll itll; ma'am maam; mightn't mightnt; mightn't've mightnt've mightn'tve; might've mightve;
mustn't mustnt; must've mustve; needn't neednt; not've notve; o'clock oclock; oughtn't oughtnt;
'ow's'at ow's'at 'ows'at 'ow'sat; shan't shant; she'd've shed've she'dve; should've shouldve; shouldn't shouldnt;
shouldn't've shouldnt've shouldn'tve; somebodyd somebody'd; somebody'd've somebodyd've somebody'dve;
somebody'll somebodyll; somebody's somebodys; someone'd someoned; someone'd've someoned've someone'dve;
someone'll someonell; someone's someones; something'd somethingd; something'd've somethingd've something'dve;
something'll somethingll; that's thats; there'd thered; there'd've thered've there'dve; there're therere;
there's theres; they'd theyd; they'd've theyd've they'dve; they'll theyll; they're theyre; they've theyve;
'twas twas; wasn't wasnt; we'd've wed've we'dve; we've weve; weren't werent; what'll whatll; what're whatre;
what's whats; what've whatve; when's whens; where'd whered; where's wheres; where've whereve; who'd whod;
who'd've whod've who'dve; who'll wholl; who's whos; who've whove; why'll whyll; why're whyre; why's whys; won't wont;
would've wouldve; wouldn't wouldnt; wouldn't've wouldnt've wouldn'tve; y'all yall; y'all'll yall'll y'allll;
y'all'd've yall'd've y'alld've y'all'dve; you'd youd; you'd've youd've you'dve; you'll youll; you're youre;
you've youve
"""
_CONTRACTIONS = {
    wrong: right for right, *wrongs in (entry.split() for entry in _CONTRACTIONS_TEXT.split(";")) for wrong in wrongs
}
_NUMBERS = dict(
    zip("none zero one two three four five six seven eight nine ten".split(), [0, *range(11)], strict=True)
)
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

# The official pattern is meant to spare decimal points but looks ahead for "<=" instead of behind for a digit: any
# period without a digit after it goes, that of "7." too. re.UNICODE is passed where the count belongs: 32 at most.
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = int(re.UNICODE)
_ANLS_THRESHOLD = 0.5
_COMMA_IN_NUMBER = re.compile(r"\d,\d")


def strip_punctuation(text: str) -> str:
    """Remove or space out punctuation as the VQA evaluation does.

    A sign is removed where it stands next to a space anywhere in the text, or where the text has a number such as
    ``1,000``; otherwise it becomes a space.
    """
    cleaned = text
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    for sign in _PUNCTUATION:
        remove = has_number or f"{sign} " in text or f" {sign}" in text
        cleaned = cleaned.replace(sign, "" if remove else " ")
    return _PERIOD.sub("", cleaned, count=_MAX_PERIODS)


def map_words(text: str) -> str:
    """Lowercase, turn number words into digits, drop articles and repair contractions, as the VQA evaluation does."""
    words = (str(_NUMBERS.get(word, word)) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def one_line(text: str) -> str:
    """Newlines and tabs as spaces, none at the ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalize_vqa(text: str) -> str:
    """An answer as the official VQA evaluation compares it (where annotators differ)."""
    return map_words(strip_punctuation(text))


def normalize_evalai(text: str) -> str:
    """An answer as the EvalAI processor has it: TextVQA is compared in this form and VQAv2 is submitted in it."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalize_vqa(one_line(text))


def soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """Mean over the annotators of ``min(1, others who gave this answer / 3)``; all texts normalized already."""
    scores = []
    for left_out in range(len(references)):
        matches = sum(other == answer for index, other in enumerate(references) if index != left_out)
        scores.append(min(1, float(matches) / 3))
    return sum(scores) / len(scores)


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance."""
    if len(first) > len(second):
        first, second = second, first
    previous = list(range(len(first) + 1))
    for row, wanted in enumerate(second, start=1):
        current = [row]
        for column, letter in enumerate(first, start=1):
            change = previous[column - 1] + (letter != wanted)
            current.append(min(change, previous[column] + 1, current[-1] + 1))
        previous = current
    return previous[-1]


def anls(answer: str, references: Sequence[str]) -> float:
    """Normalized Levenshtein similarity to the nearest reference; 0 below 0.5.

    The distance is that of lowercase texts with collapsed spaces, while the length is that of the raw ones, in
    capitals (``ß`` counts twice), as in the official script: padding with spaces raises the score.
    """
    similarity = 1 - min(_relative_distance(answer, reference) for reference in references)
    return similarity if similarity >= _ANLS_THRESHOLD else 0.0


def relaxed_match(answer: str, reference: str, tolerance: float = 0.05) -> bool:
    """Whether numbers differ by at most a share ``tolerance`` of the reference, or texts are equal but for case."""
    value, wanted = _number(answer), _number(reference)
    if value is not None and wanted:
        return abs(value - wanted) / abs(wanted) <= tolerance
    return answer.lower() == reference.lower()


def answer_list(cell: str) -> list[str]:
    """Answers of a table cell: the text of a Python list, or one answer as it is. Nothing is evaluated."""
    if cell.lstrip(" \t").startswith("["):
        try:
            content = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [cell]
        if isinstance(content, list) and content:
            return [str(item) for item in content]
    return [cell]


def round_as_printed(value: float, digits: int = 2) -> float:
    """A figure as a script prints it with ``{:.2f}``."""
    return float(f"{value:.{digits}f}")


def round_as_numpy(value: float, digits: int) -> float:
    """Round as NumPy does (scale, round half to even, scale back), which differs from Python's ``round`` at ties."""
    scale = 10.0**digits
    return round(value * scale) / scale


def _relative_distance(answer: str, reference: str) -> float:
    length = max(len(reference.upper()), len(answer.upper()))
    distance = edit_distance(" ".join(reference.lower().split()), " ".join(answer.lower().split()))
    return float(distance) / float(length) if length else 0.0


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None
