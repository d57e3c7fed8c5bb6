"""Phones in IPA, and how they are made: voicing, place, manner; height, backness, rounding.

    articulations("tʃ")[0].manner              # "affricate"
    classes(articulations("aɪ")[1])            # {"voicing": "voiced", "manner": "vowel", "height": "near-close", ...}

The classes are those of the chart of the International Phonetic Association (revised to 2020), and for symbols that the
chart lacks (ɚ, ᵻ, ɫ) those of espeak-ng's documentation (docs/phonemes.md). What espeak-ng says of its phones is its
own transcription: `espeak_phone` brings it to one alphabet for all languages, so that a symbol means the same in each.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from hooked_whisper.errors import AnalysisError

# letter voicing place manner
_CONSONANTS = """
p voiceless bilabial plosive      b voiced bilabial plosive         t voiceless alveolar plosive
d voiced alveolar plosive         ʈ voiceless retroflex plosive     ɖ voiced retroflex plosive
c voiceless palatal plosive       ɟ voiced palatal plosive          k voiceless velar plosive
ɡ voiced velar plosive            q voiceless uvular plosive        ɢ voiced uvular plosive
ʔ voiceless glottal plosive       m voiced bilabial nasal           ɱ voiced labiodental nasal
n voiced alveolar nasal           ɳ voiced retroflex nasal          ɲ voiced palatal nasal
ŋ voiced velar nasal              ɴ voiced uvular nasal             ʙ voiced bilabial trill
r voiced alveolar trill           ʀ voiced uvular trill             ⱱ voiced labiodental tap
ɾ voiced alveolar tap             ɽ voiced retroflex tap            ɸ voiceless bilabial fricative
β voiced bilabial fricative       f voiceless labiodental fricative v voiced labiodental fricative
θ voiceless dental fricative      ð voiced dental fricative         s voiceless alveolar fricative
z voiced alveolar fricative       ʃ voiceless postalveolar fricative ʒ voiced postalveolar fricative
ʂ voiceless retroflex fricative   ʐ voiced retroflex fricative      ɕ voiceless alveolo-palatal fricative
ʑ voiced alveolo-palatal fricative ç voiceless palatal fricative    ʝ voiced palatal fricative
x voiceless velar fricative       ɣ voiced velar fricative          χ voiceless uvular fricative
ʁ voiced uvular fricative         ħ voiceless pharyngeal fricative  ʕ voiced pharyngeal fricative
h voiceless glottal fricative     ɦ voiced glottal fricative        ɬ voiceless alveolar fricative
ɮ voiced alveolar fricative       ɧ voiceless postalveolar fricative ʋ voiced labiodental approximant
ɹ voiced alveolar approximant     ɻ voiced retroflex approximant    j voiced palatal approximant
ɰ voiced velar approximant        ɥ voiced labial-palatal approximant w voiced labial-velar approximant
ʍ voiceless labial-velar fricative l voiced alveolar lateral        ɫ voiced alveolar lateral
ɭ voiced retroflex lateral        ʎ voiced palatal lateral          ʟ voiced velar lateral
ɓ voiced bilabial implosive       ɗ voiced alveolar implosive       ʄ voiced palatal implosive
ɠ voiced velar implosive          ʛ voiced uvular implosive
"""
# letter height backness rounding
_VOWELS = """
i close front unrounded           y close front rounded             ɨ close central unrounded
ʉ close central rounded           ɯ close back unrounded            u close back rounded
ɪ near-close front unrounded      ʏ near-close front rounded        ᵻ near-close central unrounded
ᵿ near-close central rounded      ʊ near-close back rounded         e close-mid front unrounded
ø close-mid front rounded         ɘ close-mid central unrounded     ɵ close-mid central rounded
ɤ close-mid back unrounded        o close-mid back rounded          ə mid central unrounded
ɚ mid central unrounded           ɛ open-mid front unrounded        œ open-mid front rounded
ɜ open-mid central unrounded      ɝ open-mid central unrounded      ɞ open-mid central rounded
ʌ open-mid back unrounded         ɔ open-mid back rounded           æ near-open front unrounded
ɐ near-open central unrounded     a open front unrounded            ɶ open front rounded
ɑ open back unrounded             ɒ open back rounded
"""
PLACE_CLASSES = {
    **dict.fromkeys(("bilabial", "labiodental", "labial-velar", "labial-palatal"), "labial"),
    **dict.fromkeys(("dental", "alveolar", "postalveolar", "retroflex", "alveolo-palatal"), "coronal"),
    **dict.fromkeys(("palatal", "velar", "uvular"), "dorsal"),
    **dict.fromkeys(("pharyngeal", "glottal"), "laryngeal"),
}
HEIGHT_CLASSES = {
    **dict.fromkeys(("close", "near-close"), "close"),
    **dict.fromkeys(("close-mid", "mid", "open-mid"), "mid"),
    **dict.fromkeys(("near-open", "open"), "open"),
}
STRESS = {"ˈ": "primary", "ˌ": "secondary"}
LONG, HALF_LONG, TIE = "ː", "ˑ", "\u0361"
_PALATAL, _NASAL, _SYLLABIC, _DENTAL = "ʲ", "\u0303", "\u0329", "\u032a"
_VOICELESS, _NON_SYLLABIC = ("\u0325", "\u030a"), "\u032f"
# Marks that change none of the classes told here: aspiration, rounding of consonants, small shifts, releases.
_OTHER_MARKS = frozenset(
    "ʰʷˠˤʼ˞\u0306\u0308\u030d\u0318\u0319\u031a\u031c\u031d\u031e\u031f\u0320\u0324\u0330\u0339\u033a\u033b\u033c\u033d"
)

# espeak-ng writes a phone for which its languages give no IPA as its own ASCII name, and these names are not IPA:
# (language, what it writes) -> what it says, after the vowels' spectra in phsource/ph_russian and ph_german.
_ESPEAK = {
    ("ru", "y"): "ɨ",
    ("ru", 'u"'): "ʉ",
    ("ru", "ɪ^"): "ɪ",
    ("de", "ɜ"): "ɐ",
}


@dataclass(frozen=True)
class Articulation:
    """How one sound is made. What does not apply (the place of a vowel, the height of a consonant) is None.

    Attributes:
        phone: its symbol, without stress and length.
        voicing: "voiced" or "voiceless".
        manner: "plosive", "nasal", "trill", "tap", "fricative", "affricate", "approximant", "lateral", "implosive", or
            "vowel".
        place: of a consonant, as the chart has it.
        height, backness, rounding: of a vowel, as the chart has it.
        nasal: a nasal consonant or a nasalised vowel.
        palatalised: a consonant with ʲ.
        long: marked as long, or doubled.
    """

    phone: str
    voicing: str
    manner: str
    place: str | None = None
    height: str | None = None
    backness: str | None = None
    rounding: str | None = None
    nasal: bool = False
    palatalised: bool = False
    long: bool = False


def _letters() -> dict[str, Articulation]:
    words = _CONSONANTS.split()
    found = {
        letter: Articulation(letter, voicing, manner, place=place, nasal=manner == "nasal")
        for letter, voicing, place, manner in zip(*[iter(words)] * 4, strict=True)
    }
    words = _VOWELS.split()
    for letter, height, backness, rounding in zip(*[iter(words)] * 4, strict=True):
        found[letter] = Articulation(letter, "voiced", "vowel", height=height, backness=backness, rounding=rounding)
    return found


LETTERS = _letters()


def plain_phone(phone: str) -> str:
    """A phone without marks of stress, length and tie, in composed Unicode; "g" becomes IPA's "ɡ"."""
    kept = "".join(mark for mark in phone.strip() if mark not in (*STRESS, LONG, HALF_LONG, TIE))
    return unicodedata.normalize("NFC", kept.replace("g", "ɡ"))


@lru_cache(maxsize=4096)
def articulations(phone: str) -> tuple[Articulation, ...]:
    """The sounds that follow each other in a phone: one, two or three in a diphthong or a vowel with r.

    An affricate is one sound, with the place and voicing of its fricative, and so is a doubled letter.

    Raises:
        AnalysisError: a symbol that is not known.
    """
    sounds: list[Articulation] = []
    for mark in _decomposed(phone):
        if mark in LETTERS:
            sounds.append(LETTERS[mark])
        elif mark in STRESS or mark == TIE:
            continue
        elif sounds and _is_mark(mark):
            sounds[-1] = _marked(sounds[-1], mark)
        else:
            raise AnalysisError(
                f"The phone {phone!r} has {mark!r}, which {'marks no sound' if _is_mark(mark) else 'is unknown'}: "
                "expected IPA. unknown_phones(labels) lists all such phones; labels.derive gives them other names."
            )
    if not sounds:
        raise AnalysisError(f"{phone!r} is no phone: expected IPA.")
    joined = [sounds[0]]
    for sound in sounds[1:]:
        before = joined[-1]
        if before.phone == sound.phone and sound.place is not None:
            joined[-1] = replace(sound, long=True)
        elif _is_affricate(before, sound):
            joined[-1] = replace(sound, phone=before.phone + sound.phone, manner="affricate")
        else:
            joined.append(sound)
    return tuple(joined)


def _decomposed(phone: str) -> str:
    # The cedilla of ç is no mark.
    return unicodedata.normalize("NFD", phone.strip().replace("g", "ɡ")).replace("c\u0327", "ç")


def _is_mark(mark: str) -> bool:
    known = (LONG, HALF_LONG, _PALATAL, _NASAL, _SYLLABIC, _DENTAL, *_VOICELESS, _NON_SYLLABIC)
    return mark in known or mark in _OTHER_MARKS


def _marked(sound: Articulation, mark: str) -> Articulation:
    if mark in (LONG, HALF_LONG):
        return replace(sound, long=True)
    named = unicodedata.normalize("NFC", sound.phone + mark)
    if mark == _NASAL:
        return replace(sound, phone=named, nasal=True)
    if mark == _PALATAL:
        return replace(sound, phone=named, palatalised=True)
    if mark in _VOICELESS:
        return replace(sound, phone=named, voicing="voiceless")
    if mark == _DENTAL and sound.place is not None:
        return replace(sound, phone=named, place="dental")
    return replace(sound, phone=named)


def _is_affricate(first: Articulation, second: Articulation) -> bool:
    if first.manner != "plosive" or second.manner != "fricative" or first.voicing != second.voicing:
        return False
    places = (str(first.place), str(second.place))
    return PLACE_CLASSES[places[0]] == PLACE_CLASSES[places[1]]


def classes(sound: Articulation) -> dict[str, str]:
    """The classes of a sound, as labels: kind -> value, without those that do not apply.

    Besides the chart's own there are `place_class` (labial, coronal, dorsal, laryngeal), `height_class` (close, mid,
    open), and `nasality`, `palatalisation` and `length` where something is marked.
    """
    found = {
        "voicing": sound.voicing,
        "manner": sound.manner,
        "place": sound.place,
        "place_class": None if sound.place is None else PLACE_CLASSES[sound.place],
        "height": sound.height,
        "height_class": None if sound.height is None else HEIGHT_CLASSES[sound.height],
        "backness": sound.backness,
        "rounding": sound.rounding,
        "nasality": "nasal" if sound.nasal else None,
        "palatalisation": "palatalised" if sound.palatalised else None,
        "length": "long" if sound.long else None,
    }
    return {kind: value for kind, value in found.items() if value is not None}


def unknown_phones(phones: Iterable[str]) -> tuple[str, ...]:
    """Those that `articulations` does not know, each once."""
    return tuple(phone for phone in dict.fromkeys(phones) if not _is_known(phone))


def _is_known(phone: str) -> bool:
    try:
        articulations(phone)
    except AnalysisError:
        return False
    return True


def espeak_phone(name: str, language: str) -> tuple[str, str | None, bool]:
    """What espeak-ng calls a phone, as (plain IPA, stress, whether it is long).

    espeak-ng's names for phones that a language gives no IPA become IPA here: Russian "y" is ɨ, "u\\"" is ʉ; German "ɜ"
    is ɐ; French "ə-" is a short ə. A name that is still none is left as it is, for `articulations` to refuse.

    Args:
        name: as its events have it, in IPA.
        language: the code of the voice, "ru" or "fr-be".
    """
    stress = next((STRESS[mark] for mark in name if mark in STRESS), None)
    long = LONG in name
    bare = plain_phone(name)
    bare = _ESPEAK.get((language.partition("-")[0], bare), bare)
    if len(bare) > 1 and bare.endswith("-"):
        bare = bare[:-1]
    half = len(bare) // 2
    if bare and bare[:half] == bare[half:] and LETTERS.get(bare[:half]) is not None:  # Italian "ss"
        bare, long = bare[:half], True
    return bare, stress, long
