"""Opens a dashboard in headless Chromium and says whether it is quick, sounds, asks for nothing and is accessible.

    python tools/check_dashboard.py DASHBOARD [--axe node_modules/axe-core/axe.min.js] [--out results.md]

axe-core comes from npm (`npm install axe-core`); without it that check is left out, and said to be. Exit status 1 if
any check fails. The browser is the environment's CHROMIUM, or the first that the path has.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from chromium import Tab, chromium, find_chromium

MAX_SCRIPT_SECONDS = 2.0
SCREENS = [("desktop, light", 1100, 800, False), ("desktop, dark", 1100, 800, True), ("phone", 360, 740, False)]
_AXE = """axe.run(document, {resultTypes: ["violations"]}).then((found) => found.violations.map(
  (one) => one.id + ": " + one.help + " (" + one.nodes.slice(0, 3).map((n) => n.target.join(" ")).join(", ") + ")"))"""


# Before it plays: while it does, Chromium may count the padding of the last MP3 frame in.
_LENGTH = """new Promise((done) => {
  const audio = new Audio(document.querySelector(".hit audio").src);
  audio.onloadedmetadata = () => done(audio.duration);
})"""
_SEARCH = """(() => {
  const begun = performance.now(), box = document.getElementById("search");
  box.value = "TEXT";
  box.dispatchEvent(new Event("input"));
  return performance.now() - begun;
})()"""


@dataclass
class Report:
    """Lines of a table, and whether all is well."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, what: str, found: str, ok: bool, needed: str) -> None:
        """One check."""
        self.rows.append((what, found, needed))
        if not ok:
            self.failed.append(f"{what}: {found}, needed {needed}")

    def to_markdown(self) -> str:
        """The table."""
        lines = ["| check | found | needed |", "|---|---|---|"]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.rows)])


def check(open_tab: Callable[[], Tab], folder: Path, axe: str | None) -> Report:
    """All checks, on the index and on the first feature's page that has sound."""
    report, index = Report(), (folder / "index.html").resolve().as_uri()
    _index(open_tab(), index, report)
    _feature(open_tab(), folder, report)
    pages = [("index", index), ("feature", _with_sound(folder).resolve().as_uri())]
    for name, address in pages:
        for screen, width, height, dark in SCREENS:
            tab = open_tab()
            tab.look(width=width, height=height, dark=dark)
            tab.open(address)
            wide = tab.run("document.documentElement.scrollWidth") - width
            report.add(f"{name}, {screen}: wider than the screen", f"{max(wide, 0)} px", wide <= 0, "0 px")
            if axe is not None:
                tab.run(axe)
                found = tab.run(_AXE)
                report.add(f"{name}, {screen}: axe's violations", "; ".join(found) or "0", not found, "0")
    if axe is None:
        report.rows.append(("axe", "not run: no --axe", ""))
    return report


def _index(tab: Tab, address: str, report: Report) -> None:
    tab.open(address)
    tab.until("document.querySelectorAll('#rows tr').length")
    seconds, rows = tab.script_seconds(), tab.run("window.DASHBOARD.columns[0].values.length")
    report.add(f"index of {rows:,} features, script time", f"{seconds:.2f} s", seconds < MAX_SCRIPT_SECONDS, "< 2 s")
    own = tab.run("Number(document.documentElement.dataset.ms)")
    report.add("of it, the table's own, to the first rows shown", f"{own:.0f} ms", own < 2000, "< 2 s")
    spent = tab.run(_SEARCH.replace("TEXT", "7"))
    report.add("a search", f"{spent:.0f} ms", spent < 200, "< 200 ms")
    tab.run(
        "(() => { const s = document.getElementById('search'); s.value = ''; s.dispatchEvent(new Event('input')); })()"
    )
    tab.run("document.querySelector('th[data-key=density] button').focus()")
    tab.press("Enter")
    sorted_by = tab.run("document.querySelector('th[data-key=density]').getAttribute('aria-sort')")
    report.add("sorted by the keyboard", str(sorted_by), sorted_by in ("ascending", "descending"), "sorted")
    for _ in range(60):
        tab.press("Tab")
        if tab.run("document.activeElement.closest('tbody') !== null"):
            break
    where = tab.run("document.activeElement.href || ''")
    report.add(
        "a feature reached by the keyboard", Path(where).name or "none", "/features/" in where, "a feature's link"
    )
    _network(tab, "index", report)


def _feature(tab: Tab, folder: Path, report: Report) -> None:
    page = _with_sound(folder)
    tab.open(page.resolve().as_uri())
    seconds = tab.script_seconds()
    report.add("feature's page, script time", f"{seconds:.2f} s", seconds < MAX_SCRIPT_SECONDS, "< 2 s")
    tab.run("document.querySelector('.buttons button').focus()")
    tab.press("Enter")
    tab.until("!document.querySelector('.hit audio').paused || document.querySelector('.hit audio').currentTime > 0")
    start, end, seconds = (
        tab.run(f"Number(document.querySelector('.hit').dataset.{n})") for n in ("start", "end", "seconds")
    )
    tab.until("document.querySelector('.hit audio').paused")
    stopped = tab.run("document.querySelector('.hit audio').currentTime")
    report.add(
        f"the span from {start:.2f} to {end:.2f} s, played by the keyboard, stops at", f"{stopped:.2f} s",
        start < stopped < end + 0.3, f"{end:.2f} s or just after",
    )  # fmt: skip
    length = tab.run(_LENGTH)
    off = 1000 * abs(length - seconds)
    report.add("length of the sound, off by", f"{off:.0f} ms", off <= 20, "at most a frame of 20 ms")
    _network(tab, "feature", report)


def _network(tab: Tab, name: str, report: Report) -> None:
    away = [address for address in tab.requests if not address.startswith("file:")]
    report.add(f"{name}: requests to the network", ", ".join(away) or f"0 of {len(tab.requests)}", not away, "0")
    report.add(f"{name}: errors of the console", "; ".join(tab.errors) or "0", not tab.errors, "0")


def _with_sound(folder: Path) -> Path:
    for page in sorted((folder / "features").glob("*.html")):
        if "<audio" in page.read_text(encoding="utf-8"):
            return page
    raise SystemExit(f"No feature in {folder} has a sound.")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dashboard", type=Path)
    parser.add_argument("--axe", type=Path, help="axe.min.js of axe-core")
    parser.add_argument("--out", type=Path, help="also write the table there")
    given = parser.parse_args()
    program = find_chromium()
    if program is None:
        sys.exit("No Chromium: install it, or set CHROMIUM to where it is.")
    axe = None if given.axe is None else given.axe.read_text(encoding="utf-8")
    with chromium(program) as open_tab:
        version = open_tab().send("Browser.getVersion")["product"]
        report = check(open_tab, given.dashboard, axe)
    text = report.to_markdown()
    print(text)
    if given.out is not None:
        about = "" if axe is None else ", axe-core " + (re.search(r"axe v([\d.]+)", axe) or ["", "?"])[1]
        command = "python tools/check_dashboard.py DASHBOARD --axe node_modules/axe-core/axe.min.js"
        given.out.write_text(
            f"# A dashboard in a browser\n\n`{command}` prints this ({version}{about}).\n\n{text}\n", encoding="utf-8"
        )
    if report.failed:
        sys.exit("\n".join(["Failed:", *report.failed]))


if __name__ == "__main__":
    main()
