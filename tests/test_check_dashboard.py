"""A dashboard in a real browser, where there is one: quick, audible, silent on the network, whole on a phone.

With AXE_CORE, the path of axe.min.js, accessibility is checked, too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from small_dashboard import WORDS, make_parts

from hooked_whisper.analysis.dashboard import feature_page, make_dashboard

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from check_dashboard import check
from chromium import chromium, find_chromium

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here")


def test_a_dashboard_in_the_browser(tmp_path: Path) -> None:
    parts = make_parts(tmp_path / "sounds")
    made = make_dashboard(**parts, out=tmp_path / "dashboard", features=[WORDS, *range(WORDS)])
    axe = os.environ.get("AXE_CORE")
    (tmp_path / "one.html").write_text(feature_page(**parts, latent=WORDS), encoding="utf-8")
    assert PROGRAM is not None
    with chromium(PROGRAM) as open_tab:
        report = check(open_tab, made.folder, None if axe is None else Path(axe).read_text(encoding="utf-8"))
        assert not report.failed, report.to_markdown()
        tab = open_tab()
        tab.open((tmp_path / "one.html").as_uri())
        tab.run("document.querySelector('.buttons button').click()")
        tab.until("document.querySelector('.hit audio').currentTime > 0")
        doses = (
            "[...document.querySelectorAll('[data-dose]')].filter((one) => !one.hidden).map((one) => one.dataset.dose)"
        )
        assert tab.run(doses) == ["1"]
        tab.run("document.querySelector('.dose input').focus()")
        tab.press("ArrowRight")
        assert tab.until(f"{doses}.join() !== '1'") and tab.run(doses) == ["2"]
        assert tab.run("document.querySelector('.dose output').value") == "2"
        assert not tab.errors and not [one for one in tab.requests if not one.startswith("file:")]
