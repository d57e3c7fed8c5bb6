"""A circuit as a graph: columns by layer, the residual streams as lines along which everything is passed on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hooked_whisper.analysis.nodes import Node

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STACKS = ("encoder", "decoder")
_AFTER = 10_000  # a column behind every layer


def draw_circuit(nodes: Sequence[Node], universe: Sequence[Node], *, labels: bool = True) -> Figure:
    """Kept nodes over their stack's residual stream, joined to it; see `Circuit.draw`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from hooked_whisper.analysis.plots import COLOURS, INK, MUTED, RULE, Figure

    columns: dict[tuple[str, int], list[Node]] = {}
    for node in universe:
        columns.setdefault(_column(node), []).append(node)
    order = sorted(columns, key=lambda column: (_STACKS.index(column[0]), column[1]))
    kept = set(nodes)
    shown = {column: [node for node in columns[column] if node in kept] for column in order}
    tallest = max(1, *(len(found) for found in shown.values()))
    figure = Figure(
        figsize=(max(6.0, 1.0 * len(order) + 1), max(3.0, 0.28 * tallest + 1.6)),
        layout="constrained",
        facecolor="white",
    )
    ax = figure.add_subplot()
    gap = {"encoder": 0, "decoder": 1}  # an empty column between the stacks
    places = {column: i + gap[column[0]] for i, column in enumerate(order)}
    for stack in _STACKS:
        xs = [places[column] for column in order if column[0] == stack]
        if xs:
            ax.plot([xs[0] - 0.4, xs[-1] + 0.4], [0, 0], color=INK, linewidth=2)
            ax.text(xs[0] - 0.4, -0.9, stack, color=MUTED, fontsize=9, va="top")
    if len({stack for stack, _ in order}) == 2:
        ends = [max(x for column, x in places.items() if column[0] == "encoder") + 0.4,
                min(x for column, x in places.items() if column[0] == "decoder") - 0.4]  # fmt: skip
        ax.annotate(
            "", xy=(ends[1], 0), xytext=(ends[0], 0), arrowprops={"arrowstyle": "->", "color": COLOURS["cross"]}
        )
    for column, x in places.items():
        left_out = len(columns[column]) - len(shown[column])
        for y, node in enumerate(shown[column], start=1):
            ax.plot([x - 0.3, x - 0.3], [0, y], color=RULE, linewidth=0.8, zorder=0)
            ax.plot([x - 0.3], [y], marker="o", markersize=6, color=COLOURS[_colour(node)], linestyle="none")
            if labels:
                ax.text(x - 0.2, y, _label(node), fontsize=7, color=INK, va="center")
        ax.text(
            x, -0.25, str(column[1]) if 0 <= column[1] < _AFTER else "", fontsize=8, color=INK, ha="center", va="top"
        )
        if left_out:
            ax.text(x, -0.55, f"{left_out} out", fontsize=6, color=MUTED, ha="center", va="top")
    ax.set_title(f"{len(nodes)} of {len(universe)} nodes", loc="left", fontsize=10, color=INK)
    ax.set_ylim(-1.3, tallest + 0.8)
    ax.set_axis_off()
    return figure


def _column(node: Node) -> tuple[str, int]:
    """Stack and layer; what comes before the layers stands at -1, what comes after them behind the last."""
    if node.layer is not None:
        return node.stack, node.layer
    if node.hook.endswith(("hook_out", "hook_logits")) or ".ln_" in node.hook or ".hook_sae_" in node.hook:
        return node.stack or "decoder", _AFTER
    return node.stack or "encoder", -1


def _colour(node: Node) -> str:
    for part, colour in (("cross_attn", "cross"), ("attn", "attn"), ("mlp", "mlp")):
        if part in node.hook:
            return colour
    return "resid"


def _label(node: Node) -> str:
    text = str(node).removeprefix(f"{node.stack}.")
    return text if node.layer is None else text.removeprefix(f"{node.layer}.").removeprefix(f"blocks.{node.layer}.")
