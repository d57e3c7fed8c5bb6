"""What analyses are given, checked where it comes in, so that a mistake is named in the caller's own words."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

from torch import Tensor

from hooked_whisper.errors import AnalysisError

METRIC = "a metric, a function of logits such as LogitDifference.of(model, ' yes', ' no')"
CONTRAST = "a contrast, such as Contrast.of(model, clean='a.wav', corrupted='b.wav', text='', language='en')"
INPUT = "an input, such as ModelInput.of(model, 'speech.wav', text, language='en') or the clean side of a contrast"
CACHE = "a cache, which model.run_with_cache('speech.wav', language='en') gives beside the logits"
Kind = type | tuple[type, ...]
_SHOWN = 60  # characters of what was given


def described(given: object) -> str:
    """What was given, in a few words: "a list of str: ['decoder.3.mlp_out']", "a Node", "None"."""
    if given is None or isinstance(given, bool | int | float | str):
        return _short(repr(given))
    if isinstance(given, Tensor):
        return f"a tensor of {str(given.dtype).removeprefix('torch.')}, shape {tuple(given.shape)}"
    if isinstance(given, list | tuple | set):
        kinds = sorted({type(one).__name__ for one in given})
        inside = f"of {' and '.join(kinds)}" if kinds else "of nothing"
        plain = all(one is None or isinstance(one, bool | int | float | str) for one in given)
        return f"a {type(given).__name__} {inside}" + (f": {_short(repr(given))}" if plain and kinds else "")
    name = type(given).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def expect(given: object, kind: Kind, what: str) -> None:
    """Raises AnalysisError, "Expected {what}, got ...", unless it is of that kind."""
    if not isinstance(given, kind):
        raise AnalysisError(f"Expected {what}, got {described(given)}.")


def expect_all(given: Any, kind: Kind, what: str) -> list[Any]:
    """What was given, as a list.

    Raises:
        AnalysisError: "Expected {what}, got ...": not several, or not all of that kind.
    """
    found = list(given) if isinstance(given, Iterable) and not isinstance(given, str | Tensor) else None
    if found is None or not all(isinstance(one, kind) for one in found):
        raise AnalysisError(f"Expected {what}, got {described(given)}.")
    return found


def expect_metric(metric: object) -> None:
    """Raises AnalysisError unless it can be called."""
    if not callable(metric):
        raise AnalysisError(f"Expected {METRIC}, got {described(metric)}.")


def check_whole(name: str, value: object, least: int | None = 1, most: int | None = None) -> int:
    """A whole number within bounds.

    Raises:
        AnalysisError: anything else.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if whole and (least is None or least <= value) and (most is None or value <= most):  # type: ignore[operator]
        return int(value)  # type: ignore[call-overload]
    bounds = "" if least is None else f" of at least {least}" if most is None else f" from {least} to {most}"
    raise AnalysisError(f"{name}={_short(repr(value))}: expected a whole number{bounds}.")


def check_clip(clip: object, n_clips: int) -> int:
    """The number of a clip that is there; negative ones do not count from the end.

    Raises:
        AnalysisError: it is not there.
    """
    if not isinstance(clip, Integral) or not 0 <= int(clip) < n_clips:
        raise AnalysisError(f"There is no clip {clip!r}: there are {n_clips}, counted from 0.")
    return int(clip)


def check_clips(clips: object, n_clips: int) -> list[int]:
    """Numbers of clips that are there, at least one.

    Raises:
        AnalysisError: none, or one that is not there.
    """
    rows = expect_all(clips, Integral, "numbers of clips, such as [0]")
    if not rows:
        raise AnalysisError(f"No clips were chosen: expected numbers from 0 to {n_clips - 1}.")
    return [check_clip(row, n_clips) for row in rows]


def largest(values: Tensor, n: int) -> list[int]:
    """Places of the n values of largest size, of either sign, largest first.

    Raises:
        AnalysisError: n below 1.
    """
    return values.abs().argsort(descending=True, stable=True)[: check_whole("n", n)].tolist()


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]} ..."
