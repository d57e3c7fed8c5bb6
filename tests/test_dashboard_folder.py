"""A dashboard's folder: what is its own is replaced, what is not stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.dashboard_folder import MARK, DashboardFolder
from hooked_whisper.analysis.dashboard_index import Row

ROW = Row(3, "", None, "", "", 0.0, None, None, 0, "")


def fill(path: Path, latent: int = 3) -> DashboardFolder:
    folder = DashboardFolder(path)
    folder.begin()
    folder.write_clip("00001", b"sound", b"picture")
    folder.write_page(latent, "<p>é</p>")
    folder.finish("Title", [], [ROW], {"hook": "encoder.hook_out"})
    return folder


def test_files_lie_where_pages_look_for_them(tmp_path: Path) -> None:
    folder = fill(tmp_path / "a" / "b")
    names = sorted(path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file())
    assert names == [
        "clips/00001.mp3", "clips/00001.png", "dashboard.json", "feature.js", "features.js", "features/00003.html",
        "index.css", "index.html", "index.js", "style.css",
    ]  # fmt: skip
    about = json.loads((folder.path / MARK).read_text())
    assert (about["complete"], about["features"], about["hook"]) == (True, 1, "encoder.hook_out")
    assert (folder.path / "features" / "00003.html").read_bytes() == "<p>é</p>".encode()
    assert folder.n_bytes() == sum((folder.path / name).stat().st_size for name in names)


def test_one_that_is_there_is_replaced_and_all_else_stays(tmp_path: Path) -> None:
    fill(tmp_path)
    for name in ("features/mine.html", "clips/mine.mp3", "letter.txt"):
        (tmp_path / name).write_text("mine")
    fill(tmp_path, latent=4)
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == ["00004.html", "mine.html"]
    assert (tmp_path / "clips" / "mine.mp3").exists() and (tmp_path / "letter.txt").exists()


def test_an_unfinished_one_says_so_and_is_taken_up(tmp_path: Path) -> None:
    DashboardFolder(tmp_path / "d").begin()
    assert json.loads((tmp_path / "d" / MARK).read_text())["complete"] is False
    fill(tmp_path / "d")


@pytest.mark.parametrize("mark", [None, "{", "[]", '{"kind": "other"}'])
def test_a_folder_of_other_things_is_refused(tmp_path: Path, mark: str | None) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "1.html").write_text("mine")
    if mark is not None:
        (tmp_path / MARK).write_text(mark)
    with pytest.raises(AnalysisError, match="holds other things than a dashboard"):
        DashboardFolder(tmp_path)
    assert (tmp_path / "features" / "1.html").read_text() == "mine"
