"""The page is one file that needs nothing else, escapes what it shows, and can be used without eyes or mouse."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest
import torch

from hooked_whisper import AudioError, load_audio
from hooked_whisper.analysis.page import Page, PageClip, PageWord, Picture, Section, Table, wav_uri
from hooked_whisper.analysis.page_style import STYLE
from hooked_whisper.speech import clips

SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"></svg>'
VOID = {"meta", "link", "img", "br", "input"}


class Reader(HTMLParser):
    """Elements of a page with their attributes and text; raises where elements do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html() -> str:
    """A page with one of everything."""
    clip = clips("fr", "vm-nonumber")[0]
    picture = Picture(SVG, alt="A heat map", caption="Where it looks", time_axis=(0.125, 0.875))
    return Page(
        title="A page",
        intro="First paragraph.\n\nSecond.",
        facts=[("Model", "tiny")],
        clips=[
            PageClip(
                title="French",
                language="fr",
                waveform=clip.load(),
                transcript=" désolé, ce numéro",
                reference=clip.text,
                words=[PageWord(" désolé,", 0.02, 0.51), PageWord(" ce", 0.51, 0.7)],
                pictures=[picture],
                credit="Voice: June Wallack",
            ),
            PageClip(title="Untimed", language="en", waveform=torch.zeros(160), transcript="silence"),
        ],
        sections=[
            Section("Numbers", text="What they are.", tables=[Table("Sizes", ["a", "b"], [["x.hook", "1"], ["y", "2"]],
                    code=frozenset({0}), numbers=frozenset({1}), languages=["", "ru"])], folded=True),
            Section("More", code="a < b", pictures=[Picture(b"\x89PNG\r\n", alt="A chart")]),
        ],
        footer="Thanks.",
    ).to_html()  # fmt: skip


def test_nothing_is_fetched(html: str) -> None:
    page = Reader(html)
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; media-src data:;")
    links = [value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")]
    assert len(links) >= 7
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"@import|url\(", STYLE)
    assert not {"object", "iframe", "embed", "form", "base"} & {tag for tag, _ in page.elements}


def test_links_lead_to_parts_of_the_page(html: str) -> None:
    page = Reader(html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [link["href"][1:] for link in page.all("a")]
    assert len(targets) == 5  # two clips, two sections, and the way past the navigation
    assert set(targets) <= set(ids)
    labels = [attributes["aria-labelledby"] for attributes in page.all("section")]
    assert set(labels) <= set(ids)


def test_whoever_cannot_see_it_is_told(html: str) -> None:
    page = Reader(html)
    assert page.all("html") == [{"lang": "en"}]
    assert [image["alt"] for image in page.all("img")] == ["A heat map", "A chart"]
    assert all(audio["aria-label"] and "controls" in audio for audio in page.all("audio"))
    assert [attributes["lang"] for attributes in page.all("dd") if "lang" in attributes] == ["fr", "fr", "en"]
    assert [attributes.get("lang") for attributes in page.all("td")] == [None, "ru"]
    assert {attributes["scope"] for attributes in page.all("th")} == {"col", "row"}
    assert page.texts["caption"] == ["Sizes"]
    assert page.texts["pre"] == ["a < b"]
    assert len(page.all("h1")) == 1
    assert page.texts["h2"] == ["French", "Untimed", "Numbers", "More"]
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))


def test_words_are_buttons_with_their_times(html: str) -> None:
    page = Reader(html)
    buttons = page.all("button")
    assert [(b["data-start"], b["data-end"]) for b in buttons] == [("0.02", "0.51"), ("0.51", "0.70")]
    assert page.texts["button"] == ["désolé,", "ce"]
    frames = [attributes for attributes in page.all("div") if attributes.get("class") == "frame"]
    assert [frame.get("data-left") for frame in frames] == ["0.12500", None]
    assert [a["data-seconds"] for a in page.all("section") if "data-seconds" in a][1] == "0.010"


def test_what_is_shown_is_never_markup() -> None:
    bad = "<script>alert('&')</script>\"><img src=x>"
    clip = PageClip(
        title=bad, language='en"><b>', waveform=torch.zeros(16), transcript=bad, reference=bad, credit=bad,
        words=[PageWord(bad, 0.0, 0.1)], pictures=[Picture(SVG, alt=bad, caption=bad)],
    )  # fmt: skip
    table = Table(bad, [bad], [[bad]], code=frozenset({0}))
    html = Page(
        bad, bad, clips=[clip], sections=[Section(bad, bad, tables=[table], code=bad)], facts=[(bad, bad)], footer=bad
    )
    page = Reader(html.to_html())
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == 1
    assert page.all("b") == []
    assert page.all("img")[0]["alt"] == bad
    assert page.texts["h1"] == [bad]


def test_sound_is_the_clip_to_16_bits() -> None:
    waveform = clips("it", "vm-sorry")[0].load()
    kind, _, data = wav_uri(waveform).partition(",")
    assert kind == "data:audio/wav;base64"
    again = load_audio(base64.b64decode(data))
    torch.testing.assert_close(again, waveform, atol=2 / 32768, rtol=0)


def test_too_loud_is_cut_off_and_none_is_refused() -> None:
    loud = load_audio(base64.b64decode(wav_uri(torch.tensor([2.0, -2.0, 0.5])).partition(",")[2]))
    torch.testing.assert_close(loud, torch.tensor([1.0, -1.0, 0.5]), atol=2 / 32768, rtol=0)
    with pytest.raises(AudioError, match="without samples"):
        wav_uri(torch.zeros(0))


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("text", ["ink", "muted", "accent"])
@pytest.mark.parametrize("ground", ["paper", "ground"])
def test_text_has_contrast(scheme: int, text: str, ground: str) -> None:
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", STYLE.split(":root")[1 + scheme]))
    lights = sorted([luminance(colours[text]), luminance(colours[ground])])
    assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5  # WCAG level AA


def test_the_word_that_is_said_stays_legible() -> None:
    for scheme in STYLE.split(":root")[1:3]:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", scheme))
        lights = sorted([luminance(colours["ink"]), luminance(colours["mark"])])
        assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5
