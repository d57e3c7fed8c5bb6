"""A feature's page says what there is: spans, bars, tables, and where nothing was measured."""

from __future__ import annotations

import re
from typing import Any

import pytest
from small_dashboard import BAD, DENSE, IDS, SILENT, WORDS, make_parts, word_at
from test_page import Reader, luminance

from hooked_whisper.analysis.dashboard_data import FeatureSource
from hooked_whisper.analysis.dashboard_page import Media, Setting, feature_html, percent
from hooked_whisper.analysis.dashboard_style import FEATURE_STYLE, INDEX_STYLE

SETTING = Setting(
    "A dashboard", "encoder.hook_out", 50.0, "other clips", lambda latent: f"{latent}.html", "../index.html"
)
MEDIA = Media(lambda excerpt: f"{excerpt.name}.mp3", lambda excerpt: f"{excerpt.name}.png")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    parts = make_parts(tmp_path_factory.mktemp("sounds"))
    names = ("sae", "codes", "corpus", "labels", "scores", "effects")
    given = {name: parts[name] for name in names}
    return FeatureSource(**given, steering={WORDS: [parts["steering"][WORDS]]})


def page(source: FeatureSource, latent: int, **options: Any) -> Reader:
    return Reader(feature_html(source.view(latent), SETTING, MEDIA, **options))


def test_players_know_their_spans(source: FeatureSource) -> None:
    shown = page(source, WORDS, before=2, after=4)
    articles = shown.all("article")
    first, last = word_at(4)
    assert (articles[0]["data-start"], articles[0]["data-end"]) == (f"{first / 50:.3f}", f"{last / 50:.3f}")
    assert [one["src"] for one in shown.all("audio")] == [f"0000{4 - at}.mp3" for at in range(5)]
    assert all("controls" in one and one["aria-label"] for one in shown.all("audio"))
    assert f"Play {first / 50:.2f} to {last / 50:.2f} s" in shown.texts["button"]
    links = {one.get("rel", one["href"]): one["href"] for one in shown.all("a")}
    assert (links["prev"], links["next"]) == ("2.html", "4.html") and "../index.html" in links


def test_activation_is_drawn_where_it_is(source: FeatureSource) -> None:
    shown = page(source, WORDS)
    (path, *_), (band, *_) = shown.all("path"), shown.all("rect")
    first, last = word_at(4)
    steps = "".join(["V5h1"] * (last - first))  # the largest of all: 95 of 100 units high
    assert path["d"] == f"M{first} 100{steps}V100z"
    assert (float(band["x"]), float(band["width"])) == (first, last - first)
    views = [one for one in shown.all("div") if one.get("role") == "img"]
    assert views[0]["aria-label"].endswith(f"the latent is active on {first / 50:.2f} to {last / 50:.2f} s")
    tier = [one for one in shown.all("li") if one.get("class") == "at"]
    assert len(tier) == len(IDS)


def test_ids_are_unique_and_labels_lead_to_them(source: FeatureSource) -> None:
    for latent in (WORDS, SILENT, DENSE):
        shown = page(source, latent)
        ids = [attributes["id"] for _, attributes in shown.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        named = {a[name] for _, a in shown.elements for name in ("aria-labelledby", "for") if name in a}
        assert named <= set(ids)
        assert len(shown.all("h1")) == 1


def test_effects_scores_and_their_absence(source: FeatureSource) -> None:
    shown = page(source, WORDS)
    cells = shown.texts["td"]
    assert "“two” 0.90 → 0.40" in cells and "-1.50" in cells and f"-0.10 ({DENSE})" in cells
    assert f"“{BAD}” 0.05 → 0.50" in cells
    assert any("Scored on other clips." in text for text in shown.texts["p"])
    silent = page(source, SILENT)
    said = " ".join(silent.texts["p"])
    assert "never fires on the 200 frames of 5 clips" in said and "Nothing: it is silent." in said
    assert not silent.all("svg") and not silent.all("audio")
    dense = " ".join(page(source, DENSE).texts["p"])
    assert "Not measured for this latent. The decoder reads it through attention alone" in dense


def test_percent() -> None:
    assert (percent(0.5), percent(0.0123456), percent(0)) == ("50 %", "1.23 %", "0 %")


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_marks_have_contrast(scheme: int) -> None:
    for style in (FEATURE_STYLE, INDEX_STYLE):
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", style.split(":root")[1 + scheme]))
        for text, ground in (("ink", "mark"), ("accent", "paper"), ("muted", "paper")):
            lights = sorted([luminance(colours[text]), luminance(colours[ground])])
            assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5
