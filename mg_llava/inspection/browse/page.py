"""An HTML page of samples: their drawings, and their tokens as text that can be searched and read in any script."""

from collections.abc import Sequence
from html import escape

from mg_llava.drawing.marks import ink_on
from mg_llava.inspection.browse.drawing import (
    REASON_COLORS,
    TOKEN_COLORS,
    TOKEN_LEGEND,
    count_reasons,
    token_style,
    visible,
)
from mg_llava.inspection.browse.samples import SampleView

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1700px; padding: 0 1rem; color: #16181d }
section { border-top: 1px solid #d4d7dd; margin-top: 2rem }
img { max-width: 100%; border: 1px solid #d4d7dd }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere }
.tokens span, .chip { border-radius: 2px }
.chip { padding: 1px 8px; margin-right: 6px }
.note { color: #b42318 }
"""


def render_page(title: str, samples: Sequence[tuple[SampleView, str]], problems: Sequence[str] = ()) -> str:
    """The page of samples, each with the file name of its drawing, and messages about others."""
    colors = "".join(
        f".{key}{shade} {{ background: {color} }}\n"
        for key, shades in TOKEN_COLORS.items()
        for shade, color in enumerate(shades)
    )
    legend = "".join(f'<span class="chip {key}1">{meaning}</span>' for key, meaning in TOKEN_LEGEND.items())
    missing = "".join(f'<p class="note">{escape(problem)}</p>' for problem in problems)
    sections = "".join(_section(view, picture) for view, picture in samples)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>{_STYLE}{colors}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><p>{legend}</p>{missing}\n{sections}</body></html>\n"
    )


def _section(view: SampleView, picture: str) -> str:
    name = escape(f"{view.source} [{view.index}]")
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in view.notes)
    # The browser shows the id of a token when pointed at.
    tokens = "".join(
        f'<span class="{token_style(token)}{number % 2}" title="{token.id}">{escape(visible(token.text))}</span>'
        + "<br>" * token.text.endswith("\n")
        for number, token in enumerate(view.tokens)
    )
    reasons = count_reasons([fate for picture in view.pictures for fate in picture.fates])
    counts = "".join(
        f'<span class="chip" style="background: {REASON_COLORS[reason]}; color: {ink_on(REASON_COLORS[reason])}">'
        f"{count} {reason}</span>"
        for reason, count in reasons.items()
        if count
    )
    return (
        f"<section><h2>{name} <small>id {escape(view.id)}</small></h2>{notes}\n"
        f"<p>{view.length} positions, {view.supervised} with loss. {counts}</p>\n"
        f'<p class="tokens">{tokens}</p>\n'
        f'<a href="{escape(picture)}"><img src="{escape(picture)}" alt="{name}" loading="lazy"></a></section>\n'
    )
