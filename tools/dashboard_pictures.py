"""Draws the dashboards' pictures of the docs in headless Chromium, from dashboards that have been built.

hooked-whisper dashboard prompts/manifest.jsonl --language en --labels words --out pages
hooked-whisper steer prompts/en/pbx-invalidpark.g722 prompts/it/vm-sorry.g722 --latent 3739 --mode swap --to 426 \
  --dose 1 --dose 2 --dose 3 --dose 4 --activity shipped --out steer.json
hooked-whisper dashboard prompts/en/pbx-invalidpark.g722 prompts/it/vm-sorry.g722 --feature 3739 \
  --steering 3739=steer.json --out steered
python tools/dashboard_pictures.py pages docs/images --feature 2810 --steering steered 3739 3

The index sorted by F1, and the page of its best feature or the one named; with --steering, the steering result of
a page of another dashboard, at a dose. The browser is the environment's CHROMIUM, or the first that the path has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from chromium import Tab, chromium, find_chromium

_DOSE = """(() => {
  const slider = document.querySelector("input[type=range]");
  slider.value = slider.dataset.doses.split("|").indexOf("DOSE");
  slider.dispatchEvent(new Event("input"));
})()"""

_SCROLL = """(() => {
  const title = [...document.querySelectorAll("h2")].find((one) => one.textContent == "Steering");
  title.scrollIntoView({behavior: "instant"});
  window.scrollBy({top: -80, behavior: "instant"});  // the bar that stays at the top
})()"""


def page(folder: Path, latent: int) -> str:
    """The address of a latent's page."""
    found = sorted(folder.rglob(f"{latent:05d}.html"))
    if not found:
        raise SystemExit(f"{folder} has no page of latent {latent}.")
    return found[0].resolve().as_uri()


def index(tab: Tab, folder: Path, out: Path) -> int:
    """The index, sorted by F1 from the largest down; returns the first latent."""
    tab.open((folder / "index.html").resolve().as_uri())
    tab.until("document.querySelectorAll('#rows tr').length")
    for _ in range(2):
        if tab.run("document.querySelector('th[data-key=f1]').getAttribute('aria-sort')") != "descending":
            tab.run("document.querySelector('th[data-key=f1] button').click()")
    tab.look(width=1100, height=900)
    tab.screenshot(out)
    return int(tab.run("document.querySelector('#rows tr a').textContent"))


def main() -> None:
    """Draws them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dashboard", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--feature", type=int, help="the best of the index where left out")
    parser.add_argument("--steering", nargs=3, metavar=("DASHBOARD", "LATENT", "DOSE"))
    given = parser.parse_args()
    program = find_chromium()
    if program is None:
        raise SystemExit("There is no Chromium: install one, or name it in the environment's CHROMIUM.")
    with chromium(program) as open_tab:
        best = index(open_tab(), given.dashboard, given.out / "dashboard_index.png")
        tab = open_tab()
        tab.open(page(given.dashboard, best if given.feature is None else given.feature))
        tab.look(width=1100, height=900)
        tab.screenshot(given.out / "dashboard_feature.png")
        if given.steering:
            tab = open_tab()
            tab.open(page(Path(given.steering[0]), int(given.steering[1])))
            tab.look(width=1100, height=900)
            tab.run(_DOSE.replace("DOSE", given.steering[2]))
            tab.run(_SCROLL)
            tab.screenshot(given.out / "dashboard_steering.png")


if __name__ == "__main__":
    main()
