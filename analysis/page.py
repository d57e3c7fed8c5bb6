"""One HTML page of what a run showed: sound, transcript, pictures, hook table, contents of the cache.

    page = Page(title="...", intro="...", clips=[...], ...)
    Path("index.html").write_text(page.to_html(), encoding="utf-8")

The page is one file that asks the network for nothing (a content security policy forbids it): sound and pictures lie
inside as data URIs. It reads on a phone, in the dark, by keyboard and by screen reader, and without JavaScript all of
it but the moving line of the player is there.
"""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis.page_style import SCRIPT, STYLE
from hooked_whisper.audio import SAMPLE_RATE
from hooked_whisper.errors import AudioError

# Nothing may be fetched: what the page shows is inside it.
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        data: the file's bytes, PNG or SVG.
        alt: what it shows, for who cannot see it.
        caption: a sentence or two below it.
        time_axis: where time 0 and the clip's end are, as fractions of the picture's width; the player's line moves
            between them. None for a picture without a time axis.
    """

    data: bytes
    alt: str
    caption: str = ""
    time_axis: tuple[float, float] | None = None

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        kind = "image/png" if self.data.startswith(b"\x89PNG") else "image/svg+xml"
        return f"data:{kind};base64,{base64.b64encode(self.data).decode('ascii')}"


@dataclass(frozen=True)
class PageWord:
    """A word of a transcript and when it is said, in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class PageClip:
    """One clip of sound with what the model made of it.

    Attributes:
        title: heading of its part of the page.
        language: code, for the lang attribute of its texts ("en").
        waveform: mono samples at 16 kHz.
        transcript: what the model wrote.
        reference: what its publisher says is said; empty where there is none.
        words: the transcript's words with times; they become buttons that play from there.
        pictures: shown below.
        credit: whose voice it is.
    """

    title: str
    language: str
    waveform: Float[Tensor, "samples"]
    transcript: str
    reference: str = ""
    words: Sequence[PageWord] = ()
    pictures: Sequence[Picture] = ()
    credit: str = ""

    @property
    def seconds(self) -> float:
        """Length of the sound."""
        return self.waveform.shape[-1] / SAMPLE_RATE


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        code, numbers: columns that are set as code, or aligned to the right.
        languages: for each row, the code of the language of all cells but the first; empty where it is English.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    code: frozenset[int] = frozenset()
    numbers: frozenset[int] = frozenset()
    languages: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page after the clips: a heading, paragraphs, pictures, tables, text as a terminal shows it.

    All but the heading is folded away if `folded`.
    """

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    code: str = ""
    folded: bool = False


@dataclass
class Page:
    """The page; `to_html` makes it one self-contained file."""

    title: str
    intro: str
    clips: list[PageClip] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    footer: str = ""

    def to_html(self) -> str:
        """The whole page as text; write it in UTF-8."""
        links = [(_anchor(f"clip-{i}"), clip.title) for i, clip in enumerate(self.clips)]
        links += [(_anchor(f"part-{i}"), section.title) for i, section in enumerate(self.sections)]
        contents = "".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title in links)
        facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in self.facts)
        body = [_clip(clip, _anchor(f"clip-{i}")) for i, clip in enumerate(self.clips)]
        body += [_section(section, _anchor(f"part-{i}")) for i, section in enumerate(self.sections)]
        return document(
            self.title,
            f"""<a class="skip" href="#main">Skip to the content</a>
<header><h1>{escape(self.title)}</h1>{paragraphs(self.intro)}{f"<dl>{facts}</dl>" if facts else ""}</header>
<nav aria-label="Parts of this page"><ul>{contents}</ul></nav>
<main id="main">
{"".join(body)}
</main>
<footer>{paragraphs(self.footer)}</footer>
<script>{SCRIPT}</script>
""",
            policy=_POLICY,
            head=f"<style>{STYLE}</style>",
        )


def document(title: str, body: str, *, policy: str, head: str) -> str:
    """A whole HTML document.

    Args:
        title: as text.
        body, head: as HTML; the head's further elements, such as the style.
        policy: what it may load (Content-Security-Policy).
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{escape(policy, quote=False)}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
{head}
</head>
<body>
{body}</body>
</html>
"""


def wav_uri(waveform: Float[Tensor, "samples"], sampling_rate: int = SAMPLE_RATE) -> str:
    """Sound as a data URI: 16-bit PCM in a WAV file, which every browser plays. Louder than 1 is cut off.

    Raises:
        AudioError: no samples.
    """
    if waveform.numel() == 0:
        raise AudioError("A clip without samples cannot be played: expected at least one.")
    samples = (waveform.detach().float().cpu().clamp(-1.0, 1.0) * 32767.0).round().to(torch.int16)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        file.writeframes(samples.numpy().astype("<i2").tobytes())
    return f"data:audio/wav;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


def paragraphs(text: str) -> str:
    """Text as HTML, a paragraph for each part between empty lines."""
    return "".join(f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _clip(clip: PageClip, anchor: str) -> str:
    lang = escape(clip.language, quote=True)
    words = " ".join(
        f'<button type="button" data-start="{word.start:.2f}" data-end="{word.end:.2f}">'
        f"{escape(word.text.strip())}</button>"
        for word in clip.words
    )
    spoken = f'<span class="words">{words}</span>' if words else escape(clip.transcript.strip())
    rows = [f'<div><dt>Whisper writes</dt><dd lang="{lang}">{spoken}</dd></div>']
    if clip.reference:
        rows.append(f'<div><dt>Published text</dt><dd lang="{lang}">{escape(clip.reference)}</dd></div>')
    pictures = "".join(_picture(picture) for picture in clip.pictures)
    credit = f'<p class="credit">{escape(clip.credit)}</p>' if clip.credit else ""
    label = escape(f"{clip.title}: the clip", quote=True)
    return f"""<section class="clip" id="{anchor}" data-seconds="{clip.seconds:.3f}" aria-labelledby="{anchor}-title">
<h2 id="{anchor}-title">{escape(clip.title)}</h2>
<audio controls preload="metadata" src="{wav_uri(clip.waveform)}" aria-label="{label}"></audio>
<dl class="texts">{"".join(rows)}</dl>
{pictures}{credit}
</section>
"""


def _picture(picture: Picture) -> str:
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    line, times = "", ""
    if picture.time_axis is not None:
        line = '<span class="playhead" hidden></span>'
        times = f' data-left="{picture.time_axis[0]:.5f}" data-right="{picture.time_axis[1]:.5f}"'
    label = escape(picture.alt, quote=True)
    return (
        '<figure><div class="scroll" tabindex="0" role="group" aria-label="Picture, scrolls sideways on a phone">'
        f'<div class="frame"{times}><img src="{picture.uri}" alt="{label}">{line}</div></div>{caption}</figure>'
    )


def _section(section: Section, anchor: str) -> str:
    inside = paragraphs(section.text) + "".join(_picture(picture) for picture in section.pictures)
    inside += "".join(table_html(table) for table in section.tables)
    if section.code:
        label = escape(section.title, quote=True)
        inside += f'<pre class="scroll" tabindex="0" role="region" aria-label="{label}">{escape(section.code)}</pre>'
    if section.folded:
        inside = f"<details><summary>Show</summary>{inside}</details>"
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-title">'
        f'<h2 id="{anchor}-title">{escape(section.title)}</h2>{inside}</section>\n'
    )


def table_html(table: Table) -> str:
    """A table as HTML; it scrolls sideways where it is too wide."""

    def kind(column: int) -> str:
        return ' class="number"' if column in table.numbers else ""

    def cell(column: int, text: str, language: str) -> str:
        inner = f"<code>{escape(text)}</code>" if column in table.code and text else escape(text)
        if column == 0:
            return f'<th scope="row"{kind(column)}>{inner}</th>'
        lang = f' lang="{escape(language, quote=True)}"' if language else ""
        return f"<td{kind(column)}{lang}>{inner}</td>"

    head = "".join(f'<th scope="col"{kind(i)}>{escape(text)}</th>' for i, text in enumerate(table.head))
    languages = table.languages or [""] * len(table.rows)
    rows = "".join(
        f"<tr>{''.join(cell(i, text, language) for i, text in enumerate(row))}</tr>"
        for row, language in zip(table.rows, languages, strict=True)
    )
    caption = escape(table.caption)
    return (
        f'<div class="scroll table" tabindex="0" role="region" aria-label="{escape(table.caption, quote=True)}">'
        f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
