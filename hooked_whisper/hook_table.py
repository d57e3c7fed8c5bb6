"""Every hook point of a model as a table: its name, the axes of its activation, and what switches it on.

    from hooked_whisper.hook_table import format_hook_table, hook_table
    print(format_hook_table(hook_table(model)))

Axes: `frame` is 20 ms of audio, `mel_frame` 10 ms, `pos` a decoder token; `key_frame` and `key_pos` are these as
keys of attention.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hooked_whisper.axes import axes

if TYPE_CHECKING:
    from hooked_whisper.model import HookedWhisper

_LAYER = re.compile(r"(?<=blocks\.)\d+")


@dataclass(frozen=True)
class HookRow:
    """Hook points that differ in nothing but their layer.

    Attributes:
        name: the hook's name, with `{i}` for the layer where there is one per layer.
        layers: the layers listed; empty for a hook outside the blocks.
        axes: names of the activation's axes, in order, such as "batch frame d_model".
        option: what `model.set_...(True)` switches it on; None where it is always computed.
    """

    name: str
    layers: tuple[int, ...]
    axes: str
    option: str | None

    @property
    def short_name(self) -> str:
        """The name with its layers, such as "encoder.blocks.0-5.hook_resid_post"."""
        first, last = self.layers[:1], self.layers[-1:]
        if len(self.layers) > 2 and self.layers == tuple(range(*first, *(n + 1 for n in last))):
            return self.name.replace("{i}", f"{first[0]}-{last[0]}")
        return self.name.replace("{i}", ",".join(map(str, self.layers)))


def hook_table(model: HookedWhisper, names: Iterable[str] | None = None) -> list[HookRow]:
    """One row for each kind of hook point, in the model's order.

    Args:
        names: the hook points to list; None lists all, those that are switched off included.
    """
    from hooked_whisper.hooks import _OPTIONAL

    layers: dict[str, list[int]] = {}
    for name in model.hook_dict if names is None else names:
        layers.setdefault(_LAYER.sub("{i}", name), []).extend(map(int, _LAYER.findall(name)))
    return [
        HookRow(kind, tuple(sorted(found)), " ".join(axes(kind)), _OPTIONAL.get(kind.rpartition(".")[2]))
        for kind, found in layers.items()
    ]


def format_hook_table(rows: Iterable[HookRow]) -> str:
    """The table as aligned text, one row a line: name, axes, the option that the hook needs."""
    cells = [(row.short_name, row.axes, row.option or "") for row in rows]
    name_width = max((len(name) for name, _, _ in cells), default=0)
    axes_width = max((len(shape) for _, shape, _ in cells), default=0)
    return "\n".join(f"{name:<{name_width}}  {shape:<{axes_width}}  {note}".rstrip() for name, shape, note in cells)
