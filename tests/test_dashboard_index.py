"""The index holds every feature once, compact, and no text of it is markup."""

from __future__ import annotations

import json
from dataclasses import replace

from small_dashboard import BAD
from test_page import Reader

from hooked_whisper.analysis.dashboard_index import Row, columns, data_script, index_html

PLAIN = Row(3, "", None, "", "", 0.0, None, None, 0, "")
ROWS = [
    PLAIN,
    Row(12, f"word={BAD}", 0.5, "lexical", "a ×2", 0.012345678, 1.5, 3.25, 4, "en 80 %"),
    Row(13, "word=Apple", 0.25, "silent", "b ×1", 0.5, 1.0, 2.0, 9, "fr 60 %"),
]


def read(rows: list[Row]) -> dict[str, dict]:
    text = data_script(rows)
    assert text.startswith("window.DASHBOARD=") and text.endswith(";\n")
    found = json.loads(text.removeprefix("window.DASHBOARD=").removesuffix(";\n"))
    return {column["key"]: column for column in found["columns"]}


def test_columns_hold_the_rows() -> None:
    found = read(ROWS)
    assert found["latent"]["values"] == [3, 12, 13]
    assert found["f1"]["values"] == [None, 0.5, 0.25]
    assert found["density"]["values"] == [0.0, 0.01235, 0.5]
    label = found["label"]
    assert [label["names"][at] for at in label["values"]] == ["", f"word={BAD}", "word=Apple"]
    ranks = [label["order"][at] for at in label["values"]]
    assert ranks[0] < ranks[1] < ranks[2]  # "", "word=<", "word=apple"
    assert "\u00d7" not in data_script(ROWS)  # pure ASCII, whatever it is read as


def test_columns_without_content_are_left_out() -> None:
    assert [key for key, *_ in columns([PLAIN])] == ["latent", "density", "mean", "max", "clips"]
    html = index_html("Title", "Intro", [], [PLAIN])
    assert 'data-sort="density"' in html and "<div hidden><label" in html


def test_page() -> None:
    html = index_html(BAD, "Intro", [("Model", BAD)], [*ROWS, replace(ROWS[1], latent=14, of_class=BAD)])
    page = Reader(html)
    assert page.texts["h1"] == [BAD]
    assert [one["src"] for one in page.all("script")] == ["features.js", "index.js"] and not page.all("img")
    assert {one["value"] for one in page.all("option")} == {"", "lexical", "silent", BAD}
    heads = [one["data-key"] for one in page.all("th")]
    assert heads == ["latent", "label", "f1", "class", "peaks", "density", "mean", "max", "clips", "group"]
    assert len(page.all("button")) == len(heads) + 2
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {one["for"] for one in page.all("label")} <= ids
    assert {"search", "class", "features", "rows", "found", "before", "after", "filter", "table"} <= ids
    assert page.all("a")[1]["href"] == "features/00003.html"  # for who has no scripts
