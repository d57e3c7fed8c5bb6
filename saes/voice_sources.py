"""Which packages hold recorded speech, what is known of each recording, and what is kept out of training.

All are in Debian's main section, whose licences allow any use and changed copies. Speakers are as the packages tell
them apart: "cast" stands for several people whom nothing tells apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hooked_whisper.saes.recordings import Recording, amazon_queen, drascula, steel_sky

SHARE = "usr/share"


@dataclass(frozen=True)
class Source:
    """Recordings that belong together.

    Attributes:
        name: what the manifest calls it, and its folder.
        packages: the Debian packages that hold it.
        licence: of the sound.
        find: the recordings, given the folder in which the packages are unpacked.
        minutes: of each speaker at most.
        held_out: whether its speakers are kept out of training.
    """

    name: str
    packages: tuple[str, ...]
    licence: str
    find: Callable[[Path], Iterable[Recording]]
    minutes: float = 6.0
    held_out: bool = False


# Whole languages that are kept out of training, of real and of synthetic voices alike.
HELD_OUT_LANGUAGES = frozenset({"nl", "el", "hu", "uk"})

# ISO 639 codes for what packages call otherwise; what Whisper does not know keeps its own code.
_CODES = {"en_GB": "en", "pt_BR": "pt", "nb": "no", "sr@latin": "sr", "sr@ijekavian": "sr", "sr@ijekavianlatin": "sr"}


def _code(name: str) -> str:
    return _CODES.get(name, name)


def _klettres(unpacked: Path) -> Iterator[Recording]:
    """Letters and syllables, one reader for each language; the text is the letter."""
    root = unpacked / SHARE / "klettres"
    sound = re.compile(r'<sound\s+name="([^"]*)"\s+file="([^"]*)"')
    for listing in sorted(root.glob("*/sounds.xml")):
        language = listing.parent.name
        for text, path in sound.findall(listing.read_text(encoding="utf-8")):
            if (root / path).is_file():
                yield _plain(root / path, path, _code(language), f"KLettres {language}", text.strip())


def _ktuberling(unpacked: Path) -> Iterator[Recording]:
    """Words for the parts of a picture, one reader for each language."""
    root = unpacked / SHARE / "ktuberling/sounds"
    for file in _sounds(root):
        language = file.parent.name
        if language != "nn":  # may be a machine's: KLettres says so of its own Nynorsk
            yield _plain(file, f"{language}/{file.stem}", _code(language), f"KTuberling {language}")


def _tux_paint(unpacked: Path) -> Iterator[Recording]:
    """What a picture shows, in a sentence or a word; mostly one reader for each language."""
    root = unpacked / SHARE / "tuxpaint/stamps"
    name = re.compile(r"(?P<stem>.+)_desc_(?P<language>[a-z]{2})")
    for file in _sounds(root):
        if matched := name.fullmatch(file.stem):
            language = matched["language"]
            # Belarusian and Russian have one reader.
            reader = "be, ru" if language in ("be", "ru") else language
            text = _stamp_text(file.with_name(f"{matched['stem']}.txt"), language)
            key = file.relative_to(root).with_suffix("").as_posix()
            yield _plain(file, key, language, f"Tux Paint {reader}", text)


def _stamp_text(file: Path, language: str) -> str | None:
    if not file.is_file():
        return None
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(f"{language}.utf8="):
            return line.partition("=")[2].strip() or None
    return None


_LINE = re.compile(
    r'dialogId\("(?P<name>[^"]+)",\s*"(?P<font>[^"]+)",\s*"(?P<english>(?:[^"\\]|\\.)*)"\)'
    r'(?:\s*dialogStr\("(?P<text>(?:[^"\\]|\\.)*)"\))?'
)


def _fillets(language: str) -> Callable[[Path], Iterator[Recording]]:
    """Dialogues of two fish and whom they meet; the colour of a line tells who says it."""

    def find(unpacked: Path) -> Iterator[Recording]:
        root = unpacked / SHARE / "games/fillets-ng"
        lines: dict[str, tuple[str, str | None]] = {}
        for script in sorted(root.glob(f"script/*/*dialogs_{language}.lua")):
            for line in _LINE.finditer(script.read_text(encoding="utf-8")):
                text = line["english"] if language == "en" else line["text"]
                lines[line["name"]] = (line["font"].removeprefix("font_"), _unescaped(text))
        for file in sorted(root.glob(f"sound/*/{language}/*.ogg")):
            if file.stem in lines:
                role, text = lines[file.stem]
                key = f"{file.parent.parent.name}/{file.stem}"
                yield _plain(file, key, language, f"Fish Fillets {language}, {role}", text)

    return find


def _unescaped(text: str | None) -> str | None:
    return None if text is None else re.sub(r"\\(.)", r"\1", text).strip() or None


def _gcin(unpacked: Path) -> Iterator[Recording]:
    """Mandarin syllables in two voices; the folder names one in Zhuyin, with its tone."""
    for file in _sounds(unpacked / SHARE / "gcin-voice/ogg"):
        yield _plain(file, f"{file.parent.name}/{file.stem}", "zh", f"gcin {file.stem}")


def _asterisk(folder: str, language: str, speaker: str) -> Callable[[Path], Iterator[Recording]]:
    """Telephone prompts at 8 kHz; the key names the sentence, as in the five-language prompts."""

    def find(unpacked: Path) -> Iterator[Recording]:
        root = unpacked / SHARE / "asterisk/sounds" / folder
        for file in _sounds(root):
            key = file.relative_to(root).with_suffix("").as_posix()
            if not key.startswith("silence/"):
                yield _plain(file, key, language, speaker)

    return find


def _librivox(unpacked: Path) -> Iterator[Recording]:
    """Five sentences of an audio book, with their words."""
    root = unpacked / SHARE / "pocketsphinx/test/data/librivox"
    line = re.compile(r"<s> (.*) </s> \((.*)\)")
    for text, stem in line.findall((root / "transcription").read_text(encoding="utf-8")):
        if (root / f"{stem}.wav").is_file():
            yield _plain(root / f"{stem}.wav", stem, "en", "LibriVox, Sense and Sensibility", text)


_SUFFIXES = (".ogg", ".opus", ".wav", ".gsm")


def _sounds(root: Path) -> list[Path]:
    """The sound files in a folder, in order; links that give one a second name left out."""
    return sorted(file for file in root.rglob("*") if file.suffix in _SUFFIXES and not file.is_symlink())


def _plain(file: Path, key: str, language: str, speaker: str, text: str | None = None) -> Recording:
    return Recording(key, language, speaker, text, file, file.suffix)


def _game(folder: str) -> str:
    return f"{SHARE}/scummvm/{folder}"


GAME = "freeware, may be changed and passed on (Debian main)"
GPL = "GPL-2+"

SOURCES = (
    Source(
        "beneath-a-steel-sky",
        ("beneath-a-steel-sky",),
        GAME,
        lambda unpacked: steel_sky(unpacked / _game("beneath-a-steel-sky"), speaker="Beneath a Steel Sky, cast"),
        minutes=25,
    ),
    Source(
        "flight-of-the-amazon-queen",
        ("flight-of-the-amazon-queen",),
        GAME,
        lambda unpacked: amazon_queen(unpacked / _game("flight-of-the-amazon-queen") / "queen.1c"),
        minutes=1,
    ),
    Source("drascula", ("drascula",), GAME, lambda at: drascula(at / _game("drascula/en"), language="en")),
    Source(
        "drascula-spanish", ("drascula-spanish",), GAME, lambda at: drascula(at / _game("drascula/es"), language="es")
    ),
    Source(
        "drascula-italian",
        ("drascula-italian",),
        GAME,
        lambda at: drascula(at / _game("drascula/it"), language="it"),
        held_out=True,
    ),
    Source("fillets-ng-en", ("fillets-ng-data",), "GPL-2", _fillets("en")),
    Source("fillets-ng-cs", ("fillets-ng-data", "fillets-ng-data-cs"), "GPL-2", _fillets("cs")),
    Source("fillets-ng-nl", ("fillets-ng-data", "fillets-ng-data-nl"), "GPL-2", _fillets("nl")),
    Source("tuxpaint-stamps", ("tuxpaint-stamps-default",), "GPL-2", _tux_paint),
    Source("klettres", ("klettres-data",), GPL, _klettres),
    Source("ktuberling", ("ktuberling-data",), GPL, _ktuberling),
    Source("gcin-voice", ("gcin-voice",), "GPL-3 or LGPL-3 (voice 3), CC BY 3.0 (voice 5)", _gcin),
    Source(
        "asterisk-prompt-fr-armelle",
        ("asterisk-prompt-fr-armelle",),
        "BSD-2",
        _asterisk("fr", "fr", "Armelle Desjardins"),
        held_out=True,
    ),
    Source(
        "asterisk-prompt-es-co",
        ("asterisk-prompt-es-co",),
        "GPL-2",
        _asterisk("es", "es", "July Jiménez"),
        held_out=True,
    ),
    Source(
        "asterisk-prompt-it-menardi",
        ("asterisk-prompt-it-menardi-wav",),
        "CC BY-SA 3.0",
        _asterisk("it_IT_f_Menardi", "it", "Paola Dal Zot"),
        held_out=True,
    ),
    Source("pocketsphinx-librivox", ("pocketsphinx-testdata",), "BSD-2", _librivox, held_out=True),
)

# What is known to be Debian's: file -> SHA-256. A new version is added here after someone has looked at it.
SHA256 = {
    "asterisk-prompt-es-co_0.20070403-2.1_all.deb": "6702696e045514699e87dc8fb70f370717e5df91f821f7bec8dd0df1be008e83",
    "asterisk-prompt-fr-armelle_20070613-2.2_all.deb": "162570b1a9b3512a98f06b89f60c7c17cf1b9b52297315adca9a4e5be728bea3",  # noqa: E501
    "asterisk-prompt-it-menardi-wav_1%3a1.4.22+mm20110907-3.1_all.deb": "3094530d98f8758ac275572d59624c41f60969fef883f34f4886d144f3dfeb21",  # noqa: E501
    "beneath-a-steel-sky_0.0372-8_all.deb": "e2a25c880220c26a4dfd42904b878cc655afa1c72895f9c932befbd078622934",
    "drascula_1.0+ds4-2_all.deb": "ed4af8e2d41ad446e2f3b73533daa1804e2f13f62f596c0b02b8dc39544f22b4",
    "drascula-italian_1.0+ds4-2_all.deb": "922b58de1e343e9981b73209064b1f81990722e1f52468985105c3961a86ebd1",
    "drascula-spanish_1.0+ds4-2_all.deb": "87b5f12df3fcd7ca16097c802dff1ab55e40c9ebc21209fa3f031e1661b4b8e5",
    "fillets-ng-data_1.0.1-1.1_all.deb": "25de89afd8b1adf7bcace8290248a6a22c89cd42300317e69000e162c032cf84",
    "fillets-ng-data-cs_1.0.1-1.1_all.deb": "3ecef99b9456f1c80c9625c6f2418642b52d58e7167a46bad7a412db17991b14",
    "fillets-ng-data-nl_1.0.1-1.1_all.deb": "afb4443fda9ab507dee578b75be857d121718a1cd6017a474f30e0eb13dc9d10",
    "flight-of-the-amazon-queen_1.0.0-9_all.deb": "40c08fd258d6fe95c46c1eaf5e9137f84ba330657995a281bd887c94a560a0f1",
    "gcin-voice_0~20170223-3_all.deb": "6a0353f0294d06f7bd901bada3d5d9eec63b66c2ec029f92da3124d93d45de70",
    "klettres-data_4%3a22.12.3-1_all.deb": "1186d257a19e84230856baea0b0b1ded8be9195080fcdb2588970b5cd937f5a8",
    "ktuberling-data_4%3a22.12.3-1_all.deb": "fba44c875bfa31ea488dadd9263e87a4dcaea0bd47d28817f6c0dc6d2af970ed",
    "pocketsphinx-testdata_0.8+5prealpha+1-15_all.deb": "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0",  # noqa: E501
    "tuxpaint-stamps-default_2022.06.04-1_all.deb": "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
}
