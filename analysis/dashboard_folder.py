"""The folder of a dashboard: which files lie where, and what may be replaced.

    index.html, index.js, index.css     the table of features; features.js holds its rows
    features/01234.html                 a page for each feature; they share feature.js and style.css
    clips/00042.mp3, 00042.png          sound and spectrogram of a clip, for all features
    dashboard.json                      what it is a dashboard of; tells it from a folder of other things

Whatever else lies in the folder stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import hooked_whisper
from hooked_whisper.analysis.dashboard_index import DATA_FILE, DIGITS, Row, data_script, index_html
from hooked_whisper.analysis.dashboard_index import SCRIPT_FILE as INDEX_SCRIPT_FILE
from hooked_whisper.analysis.dashboard_index import STYLE_FILE as INDEX_STYLE_FILE
from hooked_whisper.analysis.dashboard_page import SCRIPT_FILE, STYLE_FILE
from hooked_whisper.analysis.dashboard_script import FEATURE_SCRIPT, INDEX_SCRIPT
from hooked_whisper.analysis.dashboard_style import FEATURE_STYLE, INDEX_STYLE
from hooked_whisper.errors import AnalysisError

MARK = "dashboard.json"
KIND = "hooked-whisper dashboard"
_INTRO = "What each latent of the sparse autoencoder hears. Its page plays the segments on which it is most active."
# Files that a dashboard has made, and may replace.
_OWN = {"features": re.compile(r"\d+\.html"), "clips": re.compile(r"\d+(-\d+)?\.(mp3|png)")}


class DashboardFolder:
    """A folder that is empty, missing, or holds a dashboard already.

    Raises:
        AnalysisError: it holds other things, or is a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise AnalysisError(f"{path} is a file: a dashboard is a folder.")
        if path.is_dir() and any(path.iterdir()) and not self._is_ours():
            raise AnalysisError(
                f"{path} holds other things than a dashboard (it has no {MARK}), and nothing of them is deleted: name "
                "a new folder."
            )

    def _is_ours(self) -> bool:
        try:
            return json.loads((self.path / MARK).read_text(encoding="utf-8"))["kind"] == KIND
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def begin(self) -> None:
        """Makes the folders, and takes away pages and clips of a dashboard that was there."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._write(MARK, json.dumps({"kind": KIND, "complete": False}))
        for name, pattern in _OWN.items():
            folder = self.path / name
            folder.mkdir(exist_ok=True)
            for file in folder.iterdir():
                if pattern.fullmatch(file.name):
                    file.unlink()
        files = {
            SCRIPT_FILE: FEATURE_SCRIPT,
            STYLE_FILE: FEATURE_STYLE,
            INDEX_SCRIPT_FILE: INDEX_SCRIPT,
            INDEX_STYLE_FILE: INDEX_STYLE,
        }
        for name, text in files.items():
            self._write(name, text)

    def write_clip(self, name: str, sound: bytes, picture: bytes) -> None:
        """Sound and spectrogram of an excerpt."""
        (self.path / "clips" / f"{name}.mp3").write_bytes(sound)
        (self.path / "clips" / f"{name}.png").write_bytes(picture)

    def write_page(self, latent: int, html: str) -> None:
        """A feature's page."""
        self._write(f"features/{latent:0{DIGITS}d}.html", html)

    def finish(
        self, title: str, facts: Sequence[tuple[str, str]], rows: Sequence[Row], about: Mapping[str, str]
    ) -> None:
        """The index, when all pages are there."""
        self._write(DATA_FILE, data_script(rows))
        self._write("index.html", index_html(title, _INTRO, facts, rows))
        made = {"kind": KIND, "complete": True, "hooked_whisper": hooked_whisper.__version__, "features": len(rows)}
        self._write(MARK, json.dumps({**made, **about}, indent=1, ensure_ascii=False))

    def n_bytes(self) -> int:
        """Of all files of the folder."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def _write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text, encoding="utf-8")
