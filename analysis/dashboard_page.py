"""The HTML of one feature's page. What it shows is `dashboard_data.FeatureView`; where sound lies is `Media`."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from hooked_whisper.analysis.dashboard_data import FeatureView, Hit
from hooked_whisper.analysis.dashboard_media import Excerpt
from hooked_whisper.analysis.dashboard_script import FEATURE_SCRIPT
from hooked_whisper.analysis.dashboard_steering_page import steering_html
from hooked_whisper.analysis.dashboard_style import FEATURE_STYLE
from hooked_whisper.analysis.feature_effects import TokenEffect
from hooked_whisper.analysis.page import Table, document, paragraphs, table_html

STYLE_FILE, SCRIPT_FILE = "style.css", "feature.js"
# Files beside the page, wherever it is opened from, and nothing else: no address of the network.
FOLDER_POLICY = (
    "default-src 'none'; img-src 'self' file: data:; media-src 'self' file:; style-src 'self' file: 'unsafe-inline'; "
    "script-src 'self' file:"
)
_BAR = 20  # units of width of a bar of the histogram
CONTEXT = 0.5  # seconds played before and after a segment


@dataclass(frozen=True)
class Media:
    """Where a page finds sound and spectrograms: addresses of files, or data URIs.

    Attributes:
        sound, picture: from an excerpt to its address; None where the clip could not be read.
    """

    sound: Callable[[Excerpt], str | None]
    picture: Callable[[Excerpt], str | None]


@dataclass(frozen=True)
class Setting:
    """What all pages of a dashboard have in common.

    Attributes:
        title: of the dashboard.
        hook, rate: what the SAE reads, and frames a second.
        scored_on: what scores and classes were made on, "" for the clips that are shown.
        page: from a latent to the address of its page; None where it has none.
        index: address of the index; None where there is none.
    """

    title: str
    hook: str
    rate: float
    scored_on: str
    page: Callable[[int], str | None]
    index: str | None = None


def feature_html(
    view: FeatureView, setting: Setting, media: Media, *, before: int | None = None, after: int | None = None
) -> str:
    """A feature's page, which loads style, script, sound and pictures from files of the dashboard's folder.

    Args:
        before, after: latents of the pages before and after it.
    """
    return document(
        f"Latent {view.latent}{f': {view.label}' if view.label else ''}",
        _body(view, setting, media, before, after) + f'<script src="../{SCRIPT_FILE}"></script>\n',
        policy=FOLDER_POLICY,
        head=f'<link rel="stylesheet" href="../{STYLE_FILE}">',
    )


def single_html(view: FeatureView, setting: Setting, media: Media) -> str:
    """A feature's page as one file, with everything inside."""
    digest = base64.b64encode(hashlib.sha256(FEATURE_SCRIPT.encode()).digest()).decode()
    return document(
        f"Latent {view.latent}{f': {view.label}' if view.label else ''}",
        _body(view, setting, media, None, None) + f"<script>{FEATURE_SCRIPT}</script>\n",
        policy=(
            "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
            f"script-src 'sha256-{digest}'"
        ),
        head=f"<style>{FEATURE_STYLE}</style>",
    )


def _body(view: FeatureView, setting: Setting, media: Media, before: int | None, after: int | None) -> str:
    links = [f'<a href="{setting.index}">All features</a>'] if setting.index else []
    for latent, name, relation in ((before, "Previous", "prev"), (after, "Next", "next")):
        if latent is not None:
            links.append(f'<a rel="{relation}" href="{setting.page(latent)}">{name}: {latent}</a>')
    nav = "".join(f"<li>{link}</li>" for link in links)
    sections = [
        _section("fires", "Where it fires most", _hits(view, setting, media)),
        _section("activity", "How often and how strongly", _activity(view, setting)),
        _section("follows", "What it follows", _scores(view, setting)),
        _section("does", "What it does to the transcript", _effects(view.effects, setting)),
    ]
    if view.steering:
        sections.append(
            _section("steering", "Steering", "".join(map(steering_html, view.steering, range(len(view.steering)))))
        )
    if view.neighbours:
        sections.append(_section("near", "Nearest directions", _neighbours(view, setting)))
    return f"""<a class="skip" href="#main">Skip to the content</a>
<header><h1>Latent {view.latent}</h1>{_lead(view)}</header>
{f'<nav aria-label="Features"><ul>{nav}</ul></nav>' if nav else ""}
<main id="main">
{"".join(sections)}
</main>
<footer><p>{escape(setting.title)}</p></footer>
"""


def _section(anchor: str, title: str, inside: str) -> str:
    head = f'<h2 id="{anchor}-title">{title}</h2>'
    return f'<section id="{anchor}" aria-labelledby="{anchor}-title">{head}{inside}</section>\n'


def _lead(view: FeatureView) -> str:
    facts = []
    if view.label:
        worth = "" if view.f1 is None or np.isnan(view.f1) else f", held-out F1 {view.f1:.2f}"
        facts.append(("Named after", f"{view.label}{worth}"))
    if view.of_class:
        facts.append(("Class", view.of_class))
    for tier, found in view.peaks.items():
        facts.append((f"At its peaks ({tier})", ", ".join(f"{value} ×{n}" for value, n in found[:5])))
    facts.append(("Active on", f"{percent(view.density)} of frames"))
    return "<dl>" + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts) + "</dl>"


# Where it fires


def _hits(view: FeatureView, setting: Setting, media: Media) -> str:
    if not view.hits:
        return (
            f"<p>It never fires on the {view.n_rows:,} frames of {view.n_clips_all:,} clips: there is nothing to hear. "
            "Other speech may switch it on; else it is dead.</p>"
        )
    many = len(view.hits)
    intro = (
        f"<p>The {many} strongest segments, each of another clip. " if many > 1 else "<p>It fires in one clip alone. "
    ) + "Orange is its activation over Whisper's spectrogram, its height in units of its largest.</p>"
    return intro + "".join(_hit(number, hit, view, setting, media) for number, hit in enumerate(view.hits, 1))


def _hit(number: int, hit: Hit, view: FeatureView, setting: Setting, media: Media) -> str:
    segment, start = hit.segment, hit.excerpt.start
    seconds = len(hit.acts) / setting.rate
    times = f"{segment.start:.2f} to {segment.end:.2f} s"
    name = escape(segment.clip)
    sound, picture = media.sound(hit.excerpt), media.picture(hit.excerpt)
    lang = escape(hit.item.language or "", quote=True)
    said = f'<p class="said" lang="{lang}">{escape(hit.item.text)}</p>' if hit.item.text else ""
    player = '<p class="said">The sound of this clip could not be read.</p>'
    if sound is not None:
        player = (
            f'<div class="buttons"><button type="button" data-pad="0">Play {times}</button>'
            f'<button type="button" data-pad="{CONTEXT}">with what is around it</button></div>'
            f'<audio controls preload="none" src="{sound}" aria-label="{escape(segment.clip, quote=True)}, whole">'
            "</audio>"
        )
    image = f'<img src="{picture}" alt="" loading="lazy">' if picture is not None else ""
    tiers = "".join(_tier(tier, hit, start, seconds, lang) for tier in hit.tiers)
    where = f"{start:.0f} to {start + seconds:.0f} s of it; " if start else ""
    return f"""<article class="hit" data-start="{max(segment.start - start, 0):.3f}" \
data-end="{min(segment.end - start, seconds):.3f}" data-seconds="{seconds:.3f}" aria-labelledby="hit-{number}">
<h3 id="hit-{number}">{number}. {name}, {times}</h3>
<p class="peak">{where}peak {segment.peak:.3g} at {segment.peak_time:.2f} s{_spoken(hit)}</p>
{said}{player}
<div class="scroll" tabindex="0" role="group" aria-label="Spectrogram of {escape(segment.clip, quote=True)}">
<div class="strip" style="--seconds:{seconds:.2f}"><div class="view" role="img" \
aria-label="Spectrogram of {seconds:.1f} s; the latent is active on {_spans(hit, setting.rate)}">{image}\
<svg viewBox="0 0 {len(hit.acts)} 100" preserveAspectRatio="none" aria-hidden="true">\
{_area(hit, view.maximum, setting.rate)}</svg><span class="playhead" hidden></span></div>
{_clock(start, seconds)}{tiers}</div></div>
</article>
"""


def _spoken(hit: Hit) -> str:
    return "".join(f", {escape(tier)} <mark>{escape(value)}</mark>" for tier, value in hit.said.items())


def _spans(hit: Hit, rate: float, most: int = 6) -> str:
    """The stretches of an excerpt on which a latent is active, in words."""
    on = np.diff(np.concatenate([[0], (hit.acts > 0).astype(np.int8), [0]]))
    edges = zip(np.flatnonzero(on == 1) / rate, np.flatnonzero(on == -1) / rate, strict=True)
    spans = [f"{hit.excerpt.start + first:.2f} to {hit.excerpt.start + last:.2f} s" for first, last in edges]
    return ", ".join(spans[:most]) + (f" and {len(spans) - most} more" if len(spans) > most else "")


def _area(hit: Hit, maximum: float, rate: float) -> str:
    """The segment as a band and the activation as steps, frame by frame, 95 units high where it is largest."""
    height = np.rint(100 - 95 * hit.acts / (maximum or 1.0)).astype(int)
    on = hit.acts > 0
    edges = np.flatnonzero(np.diff(np.concatenate([[False], on, [False]])))
    path = []
    for first, last in edges.reshape(-1, 2).tolist():
        steps = "".join(f"V{y}h1" for y in height[first:last].tolist())
        path.append(f"M{first} 100{steps}V100z")
    left = (hit.segment.start - hit.excerpt.start) * rate
    width = (hit.segment.end - hit.segment.start) * rate
    return f'<rect x="{left:.4g}" width="{width:.4g}" height="100"/><path d="{"".join(path)}"/>'


def _clock(start: float, seconds: float) -> str:
    """Full seconds below the spectrogram."""
    marks = "".join(
        f'<span style="left:{100 * at / seconds:.2f}%">{start + at:.0f} s</span>' for at in range(int(seconds) + 1)
    )
    return f'<div class="clock" aria-hidden="true">{marks}</div>'


def _tier(tier: str, hit: Hit, start: float, seconds: float, lang: str) -> str:
    items = []
    for one in hit.tiers[tier]:
        left, right = max(one.start - start, 0), min(one.end - start, seconds)
        now = ' class="at"' if one.start <= hit.segment.peak_time < one.end else ""
        place = f"left:{100 * left / seconds:.2f}%;width:{100 * (right - left) / seconds:.2f}%"
        items.append(f'<li{now} style="{place}">{escape(one.value)}</li>')
    of = f' lang="{lang}"' if tier == "word" and lang else ""
    return f'<ol class="tier" aria-label="{escape(tier, quote=True)}"{of}>{"".join(items)}</ol>'


# How often and how strongly


def percent(share: float) -> str:
    """A share with three digits, as per cent."""
    return f"{100 * share:.3g} %"


def _activity(view: FeatureView, setting: Setting) -> str:
    facts = [
        ("Frames", f"{view.n_active:,} of {view.n_rows:,}: {percent(view.density)}"),
        ("Clips", f"{view.n_clips:,} of {view.n_clips_all:,}"),
    ]
    if not view.n_active:
        return _facts(facts)
    facts += [
        ("Mean where active", f"{view.mean:.3g}"),
        ("Largest", f"{view.maximum:.3g}"),
        ("Stays active for", f"{view.duration:.3f} s on average"),
    ]
    tables = ""
    for name, found in view.groups.items():
        rows = [[value, percent(share)] for value, share in found[:12]]
        more = f"; {len(found) - 12} more" if len(found) > 12 else ""
        caption = f"Part of the frames on which it is active, by {name}{more}"
        tables += table_html(Table(caption, [name, "active on"], rows, numbers=frozenset({1})))
    return _facts(facts) + _histogram(view) + tables


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    return (
        '<dl class="facts">'
        + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
        + "</dl>"
    )


def _histogram(view: FeatureView) -> str:
    counts, top = view.counts.tolist(), max(int(view.counts.max()), 1)
    bars = "".join(
        f'<rect x="{_BAR * at}" y="{100 - 100 * n / top:.1f}" width="{_BAR - 2}" height="{100 * n / top:.1f}"/>'
        for at, n in enumerate(counts)
        if n
    )
    usual = int(view.counts.argmax())
    low, high = view.edges[usual], view.edges[usual + 1]
    label = (
        f"Histogram of the {view.n_active:,} activations, from 0 to {view.maximum:.3g}; most frequent, {top:,} times, "
        f"are {low:.3g} to {high:.3g}."
    )
    return (
        f'<figure class="bars"><svg viewBox="0 0 {_BAR * len(counts)} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}">{bars}</svg><div class="ends" aria-hidden="true"><span>0</span><span>{view.maximum:.3g}'
        f"</span></div><figcaption>{label}</figcaption></figure>"
    )


# What it follows


def _scores(view: FeatureView, setting: Setting) -> str:
    if not view.matches:
        return "<p>No label fits it, or none was scored.</p>" if view.n_active else "<p>Nothing: it is silent.</p>"
    rows = [
        [
            m.label,
            *(_number(v) for v in (m.f1, m.f1_train, m.precision, m.recall, m.auc)),
            f"{m.information:.4f}",
            f"{m.n:,}",
        ]
        for m in view.matches
    ]
    head = ["label", "F1, held out", "F1, training", "precision", "recall", "AUC", "bits", "frames"]
    caption = "The labels that fit best on the training half; all other figures are of the other half."
    evidence = f"<p>Evidence for its class: {escape(view.why)}.</p>" if view.why else ""
    of = f"<p>Scored on {escape(setting.scored_on)}.</p>" if setting.scored_on else ""
    return evidence + of + table_html(Table(caption, head, rows, numbers=frozenset(range(1, len(head)))))


def _number(value: float) -> str:
    return "n/a" if np.isnan(value) else f"{value:.2f}"


# What it does


def _effects(effects: Sequence[TokenEffect] | None, setting: Setting) -> str:
    if effects is None:
        way = " The decoder reads it through attention alone, so that its weights lead to no logit directly."
        return f"<p>Not measured for this latent.{way if setting.hook.startswith('encoder.') else ''}</p>"
    if not effects:
        return "<p>Nothing: there is no segment on which it could be taken away.</p>"
    rows = []
    for one in effects:
        instead = ", ".join(f"{_token(t)} {a:.2f} → {b:.2f}" for t, a, b in one.instead)
        control = "no other" if one.control is None else f"{one.control:+.2f} ({one.control_latent})"
        rows.append(
            [
                f"{one.clip}, {one.start:.2f} to {one.end:.2f} s",
                one.transcript,
                f"{_token(one.token)} {one.before:.2f} → {one.after:.2f}",
                instead,
                f"{one.total:+.2f}",
                control,
            ]
        )
    head = ["zeroed at", "the model's transcript", "token that changes most", "gaining there", "log p", "control"]
    text = (
        "The latent is set to zero on one segment, and the decoder is run again over the model's own transcript. log p "
        "is the change of its log-probability in nats; the control zeroes another latent that is about as strong there."
    )
    return paragraphs(text) + table_html(
        Table("Effect at the strongest segments", head, rows, numbers=frozenset({4, 5}))
    )


def _token(token: str) -> str:
    return f"“{token.strip() or repr(token)}”"


def _neighbours(view: FeatureView, setting: Setting) -> str:
    links = []
    for one in view.neighbours:
        page, name = setting.page(one.latent), f"latent {one.latent}"
        link = f'<a href="{page}">{name}</a>' if page else name
        links.append(f"<li>{link}, cosine {one.cosine:.2f}</li>")
    return f"<p>By decoder direction:</p><ul>{''.join(links)}</ul>"
