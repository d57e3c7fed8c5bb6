"""The main job, end to end on real weights and speech: what it prints, what it writes, and that its edit is true."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from hooked_whisper import ConfigError, HookedWhisper
from hooked_whisper.analysis import demo
from hooked_whisper.analysis.demo import Console, DemoResult, run_demo
from hooked_whisper.hook_table import format_hook_table, hook_table


@pytest.fixture(scope="module")
def shown(shared_whisper_base: HookedWhisper, tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, str, Path]:
    """One run with one sentence in five languages, and what it printed."""
    patch = pytest.MonkeyPatch()
    patch.setattr(demo, "SENTENCES", (demo.SENTENCE,))
    patch.setattr(HookedWhisper, "from_pretrained", lambda name, device=None: shared_whisper_base)
    printed = io.StringIO()
    patch.setattr("sys.stdout", printed)
    folder = tmp_path_factory.mktemp("demo") / "made" / "for it"
    try:
        return run_demo(folder), printed.getvalue(), folder
    finally:
        patch.undo()


def test_says_what_it_does(shown: tuple[DemoResult, str, Path], shared_whisper_base: HookedWhisper) -> None:
    result, printed, _ = shown
    for number in range(1, 7):
        assert f"[{number}/6]" in printed
    assert "en = Nobody is available to take your call at the moment." in printed
    assert "ru = В данный момент никто не может принять ваш звонок." in printed
    assert str(result.page.resolve()) in printed
    assert "\x1b" not in printed  # no terminal, no colours
    table = format_hook_table(hook_table(shared_whisper_base))
    assert [line for line in table.split("\n") if line not in printed] == []
    summary = r"encoder\.blocks\.0-5\.hook_resid_post +batch frame d_model +\[1, 1500, 512\] +18\.43\n"
    assert re.search(summary, printed)


def test_hears_five_languages(shown: tuple[DemoResult, str, Path]) -> None:
    heard = shown[0].heard
    assert [h.clip.language for h in heard] == ["en", "es", "fr", "it", "ru"]
    assert heard[2].text == "Personne n'est en mesure de prendre votre appel en ce moment."


def test_hidden_words_are_not_written(shown: tuple[DemoResult, str, Path]) -> None:
    nothing, *edits = shown[0].edits
    assert (nothing.what, nothing.text) == ("nothing", "Nobody is available to take your call at the moment.")
    by_word = {edit.what.partition(" ")[0]: edit.text for edit in edits}
    assert list(by_word) == ["Nobody", "available", "take", "your", "call", "moment"]
    for word in ("Nobody", "available", "take", "your", "call", "moment"):
        assert f" {word} " not in f" {by_word[word]} ".replace(".", " "), by_word[word]
    assert by_word["available"].startswith("Nobody is")  # and the rest is still heard


def test_writes_pictures_and_a_page(shown: tuple[DemoResult, str, Path]) -> None:
    result, printed, folder = shown
    assert sorted(folder.iterdir()) == sorted([*result.pictures, result.page])
    names = {path.name for path in result.pictures}
    assert {"mel_en.png", "residual_norms_en.png", "cross_attention_heads_en.png", "cross_attention_ru.png"} <= names
    for path in result.pictures:
        assert path.read_bytes().startswith(b"\x89PNG\r\n")
        assert str(path) in printed
    html = result.page.read_text(encoding="utf-8")
    assert html.count("<audio ") == 5
    assert html.count("<img ") == 8
    for text in (
        "никто",
        "llamada",
        "decoder.blocks.0-5.cross_attn.hook_pattern</code>",
        "CC BY-SA 3.0",
        "Carlo Flora",
    ):
        assert text in html
    assert str(Path.home()) not in html  # a page to pass on says nothing about this machine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert Console(1).paint("x", "1") == "x"
    monkeypatch.setattr("sys.stdout", Terminal())
    assert Console(1).paint("x", "1") == "\x1b[1mx\x1b[0m"
    monkeypatch.setenv("TERM", "dumb")
    assert Console(1).paint("x", "1") == "x"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert Console(1).paint("x", "1") == "x"


def test_steps_are_numbered_and_timed(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(2)
    with console.step("Look"):
        console.say("two\nlines")
    assert capsys.readouterr().out.startswith("\n[1/2] Look\n      two\n      lines\n      (0.0 s)\n")


def test_output_that_is_a_file_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="is a file: expected a folder"):
        run_demo(taken, model="no such model")
    assert taken.read_text(encoding="utf-8") == "mine"
