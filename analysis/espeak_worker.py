"""A program of its own that speaks with libespeak-ng and reports when each phone begins. See `phone_speech`.

    python -I espeak_worker.py LIBRARY [DATA]

Reads a request a line as JSON (voice, text, pitch, speed, range) and answers with a line of JSON and the samples it
announces, 16-bit mono. It imports nothing of hooked-whisper, so that it starts at once. Where the system can fork, each
request is spoken by a fresh copy of the process: the library keeps state from one text to the next (the phase of its
pitch flutter, its noise), and a text must sound the same whatever was said before. Elsewhere it ends after one request.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Callable
from typing import Any

# Of speak_lib.h.
SYNCHRONOUS, PHONEME_EVENTS, PHONEME_IPA, DONT_EXIT = 2, 0x1, 0x2, 0x8000
UTF8, CHARACTERS = 1, 1
RATE, PITCH, RANGE = 1, 3, 4
END, WORD, PHONEME = 0, 1, 7
# Reverberation of 1/256: the least there is, instead of what some voices bring, so that silences are silent.
DRY = "\x011H"


class EventId(ctypes.Union):
    """Of an event: a number, or up to eight bytes of text."""

    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class Event(ctypes.Structure):
    """espeak_EVENT."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", EventId),
    )


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


def open_library(path: str, data: str | None) -> tuple[ctypes.CDLL, int, str]:
    """The library, initialised; its sampling rate and version."""
    library = ctypes.CDLL(path)
    library.espeak_Info.restype = ctypes.c_char_p
    where = None if data is None else os.fsencode(data)
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, where, PHONEME_EVENTS | PHONEME_IPA | DONT_EXIT)
    if rate <= 0:
        raise OSError(f"espeak_Initialize found no data in {data or 'its usual place'}")
    # It takes the time of day as the seed of its noise. Versions before 1.52 have no function to set another.
    with contextlib.suppress(AttributeError):
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    folder = ctypes.c_char_p()
    return library, rate, library.espeak_Info(ctypes.byref(folder)).decode()


def speak(library: ctypes.CDLL, rate: int, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The events [type, text position, sample, name] of a text, and its sound."""
    events: list[tuple[int, int, int, str]] = []
    sound: list[bytes] = []

    def heard(samples: Any, count: int, told: Any) -> int:
        if samples:
            sound.append(ctypes.string_at(samples, 2 * count))
        index = 0
        while told[index].type != END:
            event = told[index]
            # A name of more than eight bytes is cut, perhaps inside a letter.
            name = event.id.string.decode("utf-8", "ignore") if event.type == PHONEME else ""
            position = max(0, event.text_position - 1 - len(DRY))
            if event.type in (WORD, PHONEME):
                events.append((event.type, position, event.sample, name))
            index += 1
        return 0

    callback = CALLBACK(heard)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(request["voice"].encode()) != 0:
        return {"error": f"no voice {request['voice']!r}"}, b""
    for parameter, name in ((RATE, "speed"), (PITCH, "pitch"), (RANGE, "range")):
        library.espeak_SetParameter(parameter, request[name], 0)
    text = (DRY + request["text"]).encode()
    if library.espeak_Synth(text, len(text) + 1, 0, CHARACTERS, 0, UTF8, None, None) != 0:
        return {"error": "espeak_Synth failed"}, b""
    samples = b"".join(sound)
    return {"rate": rate, "samples": len(samples) // 2, "events": events}, samples


def answer(out: Any, head: dict[str, Any], samples: bytes = b"") -> None:
    """Writes one answer, at once."""
    out.write(json.dumps(head, ensure_ascii=True).encode() + b"\n" + samples)
    out.flush()


def in_a_copy(work: Callable[[], None]) -> int:
    """Does `work` in a copy of this process; returns its exit status, 0 if all went well."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:  # whatever happens, the copy must not go on as if it were the original
            os._exit(status)
    return os.waitpid(child, 0)[1]


def main() -> None:
    """Answers requests until there are no more."""
    out = sys.stdout.buffer
    try:
        library, rate, version = open_library(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
    except OSError as error:
        answer(out, {"error": str(error)})
        return
    answer(out, {"version": version, "rate": rate})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if sys.platform == "win32":
            answer(out, *speak(library, rate, request))
            return
        status = in_a_copy(lambda request=request: answer(out, *speak(library, rate, request)))
        if status != 0:
            answer(out, {"error": f"libespeak-ng ended with status {status}"})


if __name__ == "__main__":
    main()
