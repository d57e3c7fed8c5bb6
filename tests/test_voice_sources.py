"""What the sources find in a tree of unpacked packages, and what is kept out of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from hooked_whisper.saes.recordings import Recording
from hooked_whisper.saes.voice_sources import HELD_OUT_LANGUAGES, SHA256, SOURCES

BY_NAME = {source.name: source for source in SOURCES}


def write(path: Path, text: str = "sound") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def find(name: str, root: Path) -> dict[str, Recording]:
    return {recording.key: recording for recording in BY_NAME[name].find(root)}


def test_every_package_has_a_checksum() -> None:
    known = {file.partition("_")[0] for file in SHA256}
    assert known == {package for source in SOURCES for package in source.packages}
    assert all(len(checksum) == 64 for checksum in SHA256.values())
    assert len({source.name for source in SOURCES}) == len(SOURCES)


def test_enough_is_kept_out() -> None:
    held_out = [source for source in SOURCES if source.held_out]
    assert len(held_out) >= 3 and len(HELD_OUT_LANGUAGES) >= 3
    assert all(source.minutes > 0 and source.licence for source in SOURCES)


def test_klettres(tmp_path: Path) -> None:
    root = tmp_path / "usr/share/klettres"
    write(root / "pt_BR/sounds.xml", '<sound name="A" file="pt_BR/a.ogg" /><sound name="B" file="pt_BR/b.ogg" />')
    write(root / "pt_BR/a.ogg")  # b.ogg is listed and not there
    found = find("klettres", tmp_path)
    assert list(found) == ["pt_BR/a.ogg"]
    assert found["pt_BR/a.ogg"].text == "A"
    assert (found["pt_BR/a.ogg"].language, found["pt_BR/a.ogg"].speaker) == ("pt", "KLettres pt_BR")


def test_ktuberling(tmp_path: Path) -> None:
    root = tmp_path / "usr/share/ktuberling/sounds"
    for name in ("ca/eye.ogg", "sr@latin/eye.wav", "nn/eye.opus", "ca/eye.txt"):
        write(root / name)
    found = find("ktuberling", tmp_path)
    assert {key: one.language for key, one in found.items()} == {"ca/eye": "ca", "sr@latin/eye": "sr"}
    assert found["ca/eye"].text is None


def test_tux_paint(tmp_path: Path) -> None:
    root = tmp_path / "usr/share/tuxpaint/stamps/animals"
    for name in ("cow.ogg", "cow_desc.ogg", "cow_desc_ru.ogg", "cow_desc_be.ogg", "cow_desc_fr.ogg", "dog_desc_fr.ogg"):
        write(root / name)
    write(root / "cow.txt", "A cow.\nfr.utf8=Une vache.\nru.utf8=\n")
    found = find("tuxpaint-stamps", tmp_path)
    texts = {key: (one.language, one.speaker, one.text) for key, one in found.items()}
    assert texts == {
        "animals/cow_desc_be": ("be", "Tux Paint be, ru", None),
        "animals/cow_desc_fr": ("fr", "Tux Paint fr", "Une vache."),
        "animals/cow_desc_ru": ("ru", "Tux Paint be, ru", None),
        "animals/dog_desc_fr": ("fr", "Tux Paint fr", None),
    }


def test_fish_fillets(tmp_path: Path) -> None:
    root = tmp_path / "usr/share/games/fillets-ng"
    line = 'dialogId("{0}", "font_{1}", "{2}")\n'
    said = line.format("m-a", "small", r"It is \"me\".") + r'dialogStr("Jsem to \"já\".")' + "\n"
    write(root / "script/city/dialogs_cs.lua", said + line.format("v-b", "big", "Yes."))
    write(root / "script/city/dialogs_en.lua", line.format("m-a", "small", "It is me."))
    for name in ("cs/m-a", "cs/v-b", "cs/unknown", "en/m-a"):
        write(root / f"sound/city/{name}.ogg")
    found = {key: (one.speaker, one.text) for key, one in find("fillets-ng-cs", tmp_path).items()}
    assert found == {
        "city/m-a": ("Fish Fillets cs, small", 'Jsem to "já".'),
        "city/v-b": ("Fish Fillets cs, big", None),  # not translated
    }
    assert find("fillets-ng-en", tmp_path)["city/m-a"].text == "It is me."


def test_gcin(tmp_path: Path) -> None:
    write(tmp_path / "usr/share/gcin-voice/ogg/ㄊㄢ3/5.ogg")
    (one,) = find("gcin-voice", tmp_path).values()
    assert (one.key, one.language, one.speaker) == ("ㄊㄢ3/5", "zh", "gcin 5")


def test_telephone_prompts(tmp_path: Path) -> None:
    root = tmp_path / "usr/share/asterisk/sounds"
    write(root / "fr/digits/1.gsm")
    write(root / "fr/silence/2.gsm")
    (root / "fr/digits/one.gsm").symlink_to("1.gsm")
    (one,) = find("asterisk-prompt-fr-armelle", tmp_path).values()
    assert (one.key, one.language, one.speaker, one.suffix) == ("digits/1", "fr", "Armelle Desjardins", ".gsm")
    with pytest.raises(KeyError):
        find("asterisk-prompt-es-co", tmp_path)["digits/1"]


def test_librivox(tmp_path: Path) -> None:
    root = tmp_path / "usr/share/pocketsphinx/test/data/librivox"
    write(root / "transcription", "<s> he was not ill disposed </s> (austen-1)\n<s> unless </s> (austen-2)\n")
    write(root / "austen-1.wav")
    (one,) = find("pocketsphinx-librivox", tmp_path).values()
    assert (one.text, one.language) == ("he was not ill disposed", "en")


def test_games_are_looked_for_where_they_lie(tmp_path: Path) -> None:
    write(tmp_path / "usr/share/scummvm/drascula/it/7.ALS")
    (one,) = find("drascula-italian", tmp_path).values()
    assert (one.language, one.speaker) == ("it", "Drascula it, hero")
    for name in ("beneath-a-steel-sky", "flight-of-the-amazon-queen"):
        with pytest.raises(FileNotFoundError, match=name):
            find(name, tmp_path)
