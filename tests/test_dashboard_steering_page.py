"""The steering part of a page: a slider, a table for each dose, and what differs from the unhooked model marked."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_dashboard import BAD, WORDS, make_parts
from test_page import Reader

from hooked_whisper.analysis.dashboard_steering_page import steering_html


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    view = make_parts(Path(tmp_path_factory.mktemp("sounds")))["steering"][WORDS]
    return Reader(steering_html(view, 0))


def test_every_dose_has_a_table_and_a_place_of_the_slider(page: Reader) -> None:
    assert [one["data-dose"] for one in page.all("div") if "data-dose" in one] == ["0", "1", "2"]
    (slider,) = page.all("input")
    assert (slider["min"], slider["max"], slider["data-doses"]) == ("0", "2", "0|1|2")
    assert page.all("label") == [{"for": slider["id"]}] and page.all("output") == [{"for": slider["id"]}]
    assert page.texts["caption"] == ["Dose 0: no edit", "Dose 1", "Dose 2"]


def test_changes_are_marked_and_nothing_is_markup(page: Reader) -> None:
    assert page.texts["mark"] == [BAD, BAD]  # in both clips, at dose 2 alone
    assert page.texts["em"] == ["nothing"] * 2
    assert not page.all("script") and not page.all("img")
    rows = [one for one in page.all("th") if one.get("scope") == "row"]
    assert [one["rowspan"] for one in rows] == ["2", "2", "3", "3", "3", "3"]  # the unhooked text beside each dose
