"""The part of a feature's page with steering results: a slider over doses, and the transcripts at each.

All doses are in the page; the script hides all but the one chosen. Words that the unhooked model does not write there
are marked.
"""

from __future__ import annotations

from difflib import SequenceMatcher
from html import escape

from hooked_whisper.analysis.dashboard_steering import SteeringView
from hooked_whisper.analysis.steering_controls import SAE_ONLY, UNHOOKED


def steering_html(view: SteeringView, number: int) -> str:
    """One experiment; `number` tells it from others of the page."""
    about = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in view.about)
    doses = [0.0, *view.doses]
    names = "|".join(f"{dose:g}" for dose in doses)
    slider = (
        f'<p class="dose" hidden><label for="dose-{number}">Dose</label> <input type="range" id="dose-{number}" '
        f'min="0" max="{len(doses) - 1}" step="1" value="{len(doses) // 2}" data-doses="{names}"> '
        f'<output for="dose-{number}"></output></p>'
    )
    tables = "".join(_at_dose(view, dose) for dose in doses)
    notes = "".join(f"<li>{escape(note)}</li>" for note in view.notes)
    return (
        f'<div class="steering"><dl class="facts">{about}</dl>{slider}<div aria-live="polite">{tables}</div>'
        f"<ul>{notes}</ul></div>"
    )


def _at_dose(view: SteeringView, dose: float) -> str:
    names = [UNHOOKED, *([SAE_ONLY] if dose == 0 else view.conditions)]
    title = "Dose 0: no edit" if dose == 0 else f"Dose {dose:g}"
    rows = []
    for clip, language in view.clips:
        base = view.text(clip, UNHOOKED, 0.0) or ""
        lang = f' lang="{escape(language, quote=True)}"' if language else ""
        texts = [(name, view.text(clip, name, 0.0 if name == UNHOOKED else dose)) for name in names]
        known = [(name, text) for name, text in texts if text is not None]
        for at, (name, text) in enumerate(known):
            head = f'<th scope="row" rowspan="{len(known)}">{escape(clip)}</th>' if at == 0 else ""
            rows.append(f"<tr>{head}<td>{escape(name)}</td><td{lang}>{_marked(base, text)}</td></tr>")
    return (
        f'<div class="scroll table" tabindex="0" role="region" aria-label="{title}" data-dose="{dose:g}"><table>'
        f'<caption>{title}</caption><thead><tr><th scope="col">clip</th><th scope="col">version</th>'
        f'<th scope="col">transcript</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _marked(base: str, text: str) -> str:
    """A transcript with the words marked that differ from the base's."""
    old, new = base.split(), text.split()
    if not new:
        return "<em>nothing</em>"
    parts = []
    for kind, _, _, first, last in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        words = escape(" ".join(new[first:last]))
        if words:
            parts.append(words if kind == "equal" else f"<mark>{words}</mark>")
    return " ".join(parts)
