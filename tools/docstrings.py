"""Lets docstrings of the API pages describe several parameters in one line: `width, height: in pixels.`"""

from __future__ import annotations

import re
from typing import Any

import griffe

SHARED = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+)(?P<rest>: .*)$", re.MULTILINE)


class SharedParameters(griffe.Extension):
    """Gives each name of such a line a line of its own, as the docstring parser and its checks want it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of one function, class or module."""
        if obj.docstring is not None:
            obj.docstring.value = SHARED.sub(self._split, obj.docstring.value)

    @staticmethod
    def _split(match: re.Match[str]) -> str:
        # The description may go on in the lines below, so it stays with the last name.
        *others, last = match["names"].split(", ")
        lines = [f"{match['indent']}{name}: as `{last}`." for name in others]
        return "\n".join([*lines, f"{match['indent']}{last}{match['rest']}"])
