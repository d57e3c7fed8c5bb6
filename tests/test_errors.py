"""Errors: one family, readable, and built-in where a built-in type fits."""

from __future__ import annotations

import inspect

import pytest

import hooked_whisper
from hooked_whisper import errors
from hooked_whisper.errors import HookedWhisperError, did_you_mean

OWN = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, HookedWhisperError)]


@pytest.mark.parametrize("kind", OWN)
def test_each_is_of_the_family_exported_and_shows_its_sentence_bare(kind: type[HookedWhisperError]) -> None:
    assert getattr(hooked_whisper, kind.__name__) is kind
    sentence = 'It\'s "3" where 2 was expected.'
    assert str(kind(sentence)) == sentence
    if kind is not HookedWhisperError:
        assert any(issubclass(kind, builtin) for builtin in (ValueError, KeyError, ImportError, RuntimeError))


def test_near_names_are_told_and_far_ones_are_not() -> None:
    known = ["hook_resid_pre", "hook_resid_post", "hook_q"]
    assert did_you_mean("hook_resid_pots", known) == " Did you mean 'hook_resid_post' or 'hook_resid_pre'?"
    assert did_you_mean("hook_resid_pots", known, n=1) == " Did you mean 'hook_resid_post'?"
    assert did_you_mean("zebra", known) == ""
