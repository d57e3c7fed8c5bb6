"""The index of a dashboard: a table of all features that is searched and sorted where it is read.

The page holds no row itself; `features.js` beside it has the columns, compact: 4,096 features take half a megabyte.
Texts go into the page as text alone, whatever they hold.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from hooked_whisper.analysis.dashboard_data import FeatureView
from hooked_whisper.analysis.dashboard_page import FOLDER_POLICY
from hooked_whisper.analysis.page import document, paragraphs

DATA_FILE, SCRIPT_FILE, STYLE_FILE = "features.js", "index.js", "index.css"
DIGITS = 5  # of the pages' names
_PEAKS = 3


@dataclass(frozen=True)
class Row:
    """What the index says of a feature; None and "" where nothing is known."""

    latent: int
    label: str
    f1: float | None
    of_class: str
    peaks: str
    density: float
    mean: float | None
    maximum: float | None
    clips: int
    group: str

    @classmethod
    def of(cls, view: FeatureView) -> Row:
        """From what its page shows."""
        peaks = next(iter(view.peaks.values()), [])
        most = next(iter(view.groups.values()), [])
        total = sum(share for _, share in most)
        return cls(
            latent=view.latent,
            label=view.label,
            f1=None if view.f1 is None or math.isnan(view.f1) else view.f1,
            of_class=view.of_class,
            peaks=", ".join(f"{value} ×{n}" for value, n in peaks[:_PEAKS]),
            density=view.density,
            mean=view.mean if view.n_active else None,
            maximum=view.maximum if view.n_active else None,
            clips=view.n_clips,
            group=f"{most[0][0]} {100 * most[0][1] / total:.0f} %" if most else "",
        )


# key, heading, how numbers are written; "text" for texts
_COLUMNS = (
    ("latent", "latent", "whole", "latent"),
    ("label", "label", "text", "label"),
    ("f1", "F1", "fixed", "f1"),
    ("class", "class", "text", "of_class"),
    ("peaks", "at its peaks", "text", "peaks"),
    ("density", "density", "percent", "density"),
    ("mean", "mean", "precise", "mean"),
    ("max", "max", "precise", "maximum"),
    ("clips", "clips", "whole", "clips"),
    ("group", "mostly", "text", "group"),
)
_ALWAYS = ("latent", "density", "mean", "max", "clips")


def columns(rows: Sequence[Row]) -> list[tuple[str, str, str, str]]:
    """The columns that hold anything, as (key, heading, kind, field)."""
    return [c for c in _COLUMNS if c[0] in _ALWAYS or any(getattr(row, c[3]) not in ("", None) for row in rows)]


def data_script(rows: Sequence[Row]) -> str:
    """The columns as a script: `window.DASHBOARD = {...}`; texts by number, with their order."""
    found = []
    for key, _, kind, field in columns(rows):
        values = [getattr(row, field) for row in rows]
        one: dict[str, Any] = {"key": key, "kind": kind}
        if kind == "text":
            names = sorted(set(values))
            number = {name: index for index, name in enumerate(names)}
            ranks = sorted(range(len(names)), key=lambda at: names[at].casefold())
            order = [0] * len(names)
            for rank, at in enumerate(ranks):
                order[at] = rank
            one |= {"names": names, "order": order, "values": [number[value] for value in values]}
        else:
            one["values"] = [
                value if value is None or isinstance(value, int) else float(f"{value:.4g}") for value in values
            ]
        found.append(one)
    text = json.dumps({"digits": DIGITS, "columns": found}, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return f"window.DASHBOARD={text};\n"


def index_html(title: str, intro: str, facts: Sequence[tuple[str, str]], rows: Sequence[Row]) -> str:
    """The page; rows come from `features.js`."""
    named = any(row.label for row in rows)
    counts = Counter(row.of_class for row in rows if row.of_class)
    options = "".join(
        f'<option value="{escape(name, quote=True)}">{escape(name)} ({n:,})</option>'
        for name, n in counts.most_common()
    )
    group = "" if counts else " hidden"
    heads = "".join(
        f'<th scope="col" data-key="{key}"{"" if kind == "text" or key == "latent" else " class=number"}>'
        f'<button type="button">{escape(name)}<span aria-hidden="true"></span></button></th>'
        for key, name, kind, _ in columns(rows)
    )
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    first = f"features/{rows[0].latent:0{DIGITS}d}.html"
    sort, up = ("f1", 0) if named else ("density", 0)
    body = f"""<a class="skip" href="#main">Skip to the content</a>
<header><h1>{escape(title)}</h1>{paragraphs(intro)}<dl>{listed}</dl></header>
<main id="main">
<section aria-labelledby="features-title">
<h2 id="features-title">Features</h2>
<form id="filter" role="search">
<div><label for="search">Label, word, class or number</label><input type="search" id="search" autocomplete="off"></div>
<div{group}><label for="class">Class</label><select id="class"><option value="">all</option>{options}</select></div>
</form>
<p id="found" role="status">Without scripts there is no table: begin with <a href="{first}">the first feature</a>.</p>
<div id="table" hidden>
<div class="scroll table" tabindex="0" role="region" aria-label="Table of features, scrolls sideways">
<table id="features" data-sort="{sort}" data-up="{up}"><thead><tr>{heads}</tr></thead><tbody id="rows"></tbody></table>
</div>
<div class="pages"><button type="button" id="before">Previous page</button>
<button type="button" id="after">Next page</button></div>
</div>
</section>
</main>
<footer>{paragraphs(_LEGEND)}</footer>
<script src="{DATA_FILE}"></script>
<script src="{SCRIPT_FILE}"></script>
"""
    return document(title, body, policy=FOLDER_POLICY, head=f'<link rel="stylesheet" href="{STYLE_FILE}">')


_LEGEND = (
    "A feature is named after the label that decides its class; else after the one that fits best on the training half "
    "of the clips, if its mean activation there is at least three times that elsewhere and F1 on the other half, which "
    "is what is shown, at least 0.1. Density is the part of the frames on which a feature is active, mean and max are "
    "of its activation there. “Mostly” is the language (where all clips have one, the speaker) in which it is most "
    "active, with its share when each of them counts the same."
)
