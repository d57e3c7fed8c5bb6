"""espeak-ng as a source of speech whose phones have exact times. Its library runs in a process of its own.

    with Espeak() as espeak:
        spoken = espeak.say("Two dogs.", voice="en-us+f2")
        spoken.tiers["phone"]                          # (Interval(start=0.05, end=0.13, value='t'), ...)

The library's events say at which sample each phone begins. Where a plosive follows a silence of the synthesiser's own
making, that silence is the plosive's closure and counts as part of it, as it does in the voiced ones.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import json
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from jaxtyping import Int16

from hooked_whisper.analysis.labels import Interval, plain_word
from hooked_whisper.analysis.phones import articulations, espeak_phone, unknown_phones
from hooked_whisper.errors import AnalysisError, MissingExtraError, did_you_mean

WORKER = Path(__file__).resolve().parent / "espeak_worker.py"
SECONDS_TO_SPEAK = 60.0
WORD, PHONEME = 1, 7  # kinds of events
# Silences are below this part of the loudest sample, sounds above it; measured on 15 voices: under 0.002 and over 0.1.
QUIET = 0.01
SHORTEST_CLOSURE = 0.005  # seconds
_SWITCH = re.compile(r"\(([a-z-]+)\)")  # "(en)": words of another language follow
_WRITTEN_WORD = re.compile(r"[^\s—–]+")

Event = tuple[int, int, int, str]


@dataclass(frozen=True)
class Spoken:
    """A text said by espeak-ng.

    Attributes:
        samples: 16-bit mono, at `rate` Hz.
        rate: in Hz.
        tiers: "phone" (plain IPA), "stress" ("primary" or "secondary", of the phones that carry it), "length" ("long"),
            "closure" (the silent part of a plosive or affricate), "word" (lower case, as written).
    """

    samples: Int16[np.ndarray, " sample"]
    rate: int
    tiers: dict[str, tuple[Interval, ...]]

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate


def find_espeak() -> tuple[str, str | None]:
    """The library and its data: those of the package espeakng-loader, else those of the system.

    Raises:
        MissingExtraError: there is neither.
    """
    try:
        import espeakng_loader
    except ImportError as error:
        system = ctypes.util.find_library("espeak-ng")
        if system is None:
            raise MissingExtraError(
                "Synthetic speech needs libespeak-ng, which cannot be found: pip install 'hooked-whisper[analysis]' "
                "brings it as espeakng-loader, and Debian has it as libespeak-ng1."
            ) from error
        return system, None
    return espeakng_loader.get_library_path(), str(Path(espeakng_loader.get_data_path()).parent)


class Espeak:
    """A process that speaks. Use it in a `with` block, or close it.

    Attributes:
        version: of the library.
    """

    def __init__(self, library: str | None = None, data: str | None = None) -> None:
        """Starts the process.

        Args:
            library: the shared library; None takes what `find_espeak` finds.
            data: the folder that holds `espeak-ng-data`; None is the library's own idea of it.

        Raises:
            MissingExtraError: no library. AnalysisError: it cannot be loaded, or has no data.
        """
        self._library, self._data = find_espeak() if library is None else (library, data)
        self._process: subprocess.Popen[bytes] | None = None
        self.version = ""
        self._start()

    def __enter__(self) -> Espeak:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            for name in ("stdin", "stdout"):
                with contextlib.suppress(BrokenPipeError):  # of what was not flushed
                    _pipe(self._process, name).close()
            self._process.wait()
            self._process = None

    def say(self, text: str, voice: str, *, speed: int = 175, pitch: int = 50, range: int = 50) -> Spoken:
        """Says a text; the same text, voice and settings give the same samples, whatever was said before.

        Versions of the library before 1.52 differ in their noise from one process to the next.

        Args:
            voice: a language of espeak-ng's, perhaps with a variant: "es", "en-us+f2".
            speed: words in a minute, 80 to 450.
            pitch: 0 to 99.
            range: of the melody, 0 to 99; 0 is monotonous.

        Raises:
            AnalysisError: a voice that there is not, a text of which nothing is said, phones whose names are no IPA,
                settings out of their range, or a library that fails.
        """
        for name, value, low, high in (("speed", speed, 80, 450), ("pitch", pitch, 0, 99), ("range", range, 0, 99)):
            if not low <= value <= high:
                raise AnalysisError(f"{name}={value}: expected {low} to {high}.")
        # Control characters are commands to the library.
        plain = "".join(" " if ord(letter) < 32 or letter == "\x7f" else letter for letter in text)
        request = {"text": plain, "voice": voice, "speed": speed, "pitch": pitch, "range": range}
        head, sound = self._ask(request)
        if "error" in head:
            known = espeak_voices(self._data)
            raise AnalysisError(
                f"espeak-ng cannot say {text!r} with {voice!r}: {head['error']}."
                + (did_you_mean(voice.partition("+")[0], known) if known else "")
                + f" It knows {len(known)} languages (espeak_voices() lists them), with variants such as +m1 and +f2."
            )
        samples = np.frombuffer(sound, dtype="<i2")
        events = [(int(kind), int(at), int(sample), str(name)) for kind, at, sample, name in head["events"]]
        tiers = timed_tiers(events, samples, int(head["rate"]), plain, voice.partition("+")[0])
        if not tiers["phone"]:
            raise AnalysisError(f"espeak-ng says nothing of {text!r} with {voice!r}: expected words in that language.")
        if unknown := unknown_phones(one.value for one in tiers["phone"]):
            raise AnalysisError(
                f"espeak-ng calls phones of {voice!r} {', '.join(map(repr, unknown))} in {text!r}, which is no IPA: "
                "phones.espeak_phone says what its names are in IPA, and lacks these."
            )
        return Spoken(samples, int(head["rate"]), tiers)

    def _start(self) -> None:
        data = [] if self._data is None else [self._data]
        command = [sys.executable, "-I", "-S", str(WORKER), self._library, *data]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        head, _ = self._read()
        if "error" in head:
            self.close()
            raise AnalysisError(f"libespeak-ng ({self._library}) cannot be used: {head['error']}.")
        self.version = str(head["version"])

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        if self._process is None:
            self._start()
        # Where the process has ended, reading from it tells.
        with contextlib.suppress(BrokenPipeError):
            _pipe(self._process, "stdin").write(json.dumps(request).encode() + b"\n")
            _pipe(self._process, "stdin").flush()
        answer = self._read()
        if sys.platform == "win32":  # the process ends after one text there
            self.close()
        return answer

    def _read(self) -> tuple[dict[str, Any], bytes]:
        process = self._process
        assert process is not None
        alarm = threading.Timer(SECONDS_TO_SPEAK, process.kill)
        alarm.start()
        try:
            out = _pipe(process, "stdout")
            line = out.readline()
            head = json.loads(line) if line else {}
            size = 2 * head.get("samples", 0) if "events" in head else 0
            sound = out.read(size)
        finally:
            alarm.cancel()
        if not line or len(sound) < size:
            self.close()
            raise AnalysisError(
                f"The process of libespeak-ng ({self._library}) ended, or was silent for {SECONDS_TO_SPEAK:.0f} s."
            )
        return head, sound


def _pipe(process: subprocess.Popen[bytes] | None, name: str) -> IO[bytes]:
    pipe = None if process is None else process.stdin if name == "stdin" else process.stdout
    assert pipe is not None
    return pipe


def espeak_voices(data: str | None = None) -> tuple[str, ...]:
    """The languages that espeak-ng has data for, as `say` takes them; none if the data's place is not known.

    Args:
        data: the folder that holds `espeak-ng-data`; None takes what `find_espeak` finds.
    """
    data = data or find_espeak()[1]
    folder = Path(data or ".", "espeak-ng-data", "lang")
    return tuple(sorted(file.name.lower() for file in folder.rglob("*") if file.is_file()))


def timed_tiers(
    events: Sequence[Event], samples: Int16[np.ndarray, " sample"], rate: int, text: str, language: str
) -> dict[str, tuple[Interval, ...]]:
    """Tiers of labels from the library's events: (kind, position in the text, sample, name).

    Pauses have no name and are silent. A name of none that sounds (a short ə beside a tapped r) belongs to the phone
    before it, and so does a palatal glide alone (Russian "p" + "ʲ" is pʲ).
    """
    quiet = np.abs(samples.astype(np.int32)) <= QUIET * np.abs(samples.astype(np.int32)).max(initial=1)
    named = [(index, event) for index, event in enumerate(events) if event[0] == PHONEME]
    ends = [event[2] for _, event in named[1:]] + [len(samples)]
    own, spoken = language, _Phones()
    for (index, (_, _, start, name)), end in zip(named, ends, strict=True):
        if switch := _SWITCH.fullmatch(name):
            own = switch.group(1)
        elif end <= start:
            continue
        elif not name and quiet[start:end].all():
            spoken.pause()
        elif not name or name == "ʲ":
            spoken.prolong(end, name)
        else:
            before = events[index - 1][2] if index else start
            silent = _quiet_before(quiet, start, before)
            spoken.add(espeak_phone(name, own), (start, end), silent / rate >= SHORTEST_CLOSURE and start - silent)
    return {**spoken.tiers(rate), "word": _words(events, spoken, text, rate)}


def _quiet_before(quiet: np.ndarray, start: int, limit: int) -> int:
    """How many samples are quiet just before `start`, down to `limit`."""
    loud = np.flatnonzero(~quiet[limit:start])
    return start - limit - (int(loud[-1]) + 1 if len(loud) else 0)


@dataclass
class _Phone:
    name: str
    stress: str | None
    long: bool
    start: int
    end: int
    closed: int | None = None  # where its closure ends


class _Phones:
    """The phones of a text, in samples, as they come."""

    def __init__(self) -> None:
        self.all: list[_Phone] = []
        self._after_pause = True

    def pause(self) -> None:
        self._after_pause = True

    def prolong(self, end: int, mark: str) -> None:
        if self.all and not self._after_pause:
            self.all[-1].end = end
            if not self.all[-1].name.endswith(mark or "\0"):
                self.all[-1].name += mark

    def add(self, phone: tuple[str, str | None, bool], span: tuple[int, int], closure: int | bool) -> None:
        made = _Phone(*phone, *span)
        stopped = not unknown_phones([made.name]) and articulations(made.name)[0].manner in ("plosive", "affricate")
        if closure and stopped and not self._after_pause:
            made.closed, made.start = made.start, int(closure)
            self.all[-1].end = min(self.all[-1].end, made.start)
        self.all.append(made)
        self._after_pause = False

    def tiers(self, rate: int) -> dict[str, tuple[Interval, ...]]:
        def tier(found: Sequence[tuple[_Phone, str | None, int]]) -> tuple[Interval, ...]:
            return tuple(Interval(p.start / rate, end / rate, value) for p, value, end in found if value is not None)

        heard = [phone for phone in self.all if phone.end > phone.start]
        return {
            "phone": tier([(phone, phone.name, phone.end) for phone in heard]),
            "stress": tier([(phone, phone.stress, phone.end) for phone in heard]),
            "length": tier([(phone, "long" if phone.long else None, phone.end) for phone in heard]),
            "closure": tier([(phone, phone.name, phone.closed) for phone in heard if phone.closed is not None]),
        }


def _words(events: Sequence[Event], phones: _Phones, text: str, rate: int) -> tuple[Interval, ...]:
    """Words as they are written, each with its phones; those that espeak-ng says as one are one."""
    written = [(match.start(), match.group()) for match in _WRITTEN_WORD.finditer(text)]
    begun: list[tuple[int, int]] = []  # (sample, index of the written word)
    for kind, position, sample, _ in events:
        index = max(sum(start <= position for start, _ in written) - 1, 0)
        if kind == WORD and (not begun or index > begun[-1][1]):
            begun.append((sample, index))
    found = []
    for place, (sample, index) in enumerate(begun):
        last = place + 1 == len(begun)
        until, upto = (np.inf, len(written)) if last else begun[place + 1]
        said = [phone for phone in phones.all if sample <= (phone.closed or phone.start) < until]
        value = " ".join(filter(None, (plain_word(word) for _, word in written[index:upto])))
        if said and value:
            found.append(Interval(said[0].start / rate, said[-1].end / rate, value))
    return tuple(found)
