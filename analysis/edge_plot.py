"""Pictures of edges: figures as a table of writers by readers, and a circuit of edges as a graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis.edges import Edge, component
from hooked_whisper.analysis.nodes import Node

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_LABELS = 40
_STACKS = ("encoder", "decoder")


def plot_edges(edges: Sequence[Edge], values: Float[Tensor, " edge"], label: str) -> Figure:
    """A heatmap, writers down and readers to the right; white where no edge was given. Symmetric about 0.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from hooked_whisper.analysis.figures import new_figure
    from hooked_whisper.analysis.plots import MUTED, RULE

    rows, columns = (list(dict.fromkeys(ends)) for ends in zip(*((e.writer, e.reader) for e in edges), strict=True))
    row_of, column_of = ({node: place for place, node in enumerate(nodes)} for nodes in (rows, columns))
    cells = [[math.nan] * len(columns) for _ in rows]
    for edge, value in zip(edges, values.tolist(), strict=True):
        cells[row_of[edge.writer]][column_of[edge.reader]] = value
    shown = [min(len(nodes), _MOST_LABELS) for nodes in (columns, rows)]
    figure = new_figure(max(5.0, 0.2 * shown[0] + 3), max(3.0, 0.16 * shown[1] + 2))
    ax = figure.add_subplot()
    limit = max(float(values.abs().max()), 1e-12)
    image = ax.imshow(cells, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    step_x, step_y = (math.ceil(len(nodes) / _MOST_LABELS) for nodes in (columns, rows))
    ax.set_xticks(range(0, len(columns), step_x), [str(node) for node in columns[::step_x]], rotation=90)
    ax.set_yticks(range(0, len(rows), step_y), [str(node) for node in rows[::step_y]])
    ax.set_xlabel("read by", color=MUTED, fontsize=8)
    ax.set_ylabel("written by", color=MUTED, fontsize=8)
    ax.tick_params(colors=MUTED, labelsize=6, length=2)
    for spine in ax.spines.values():
        spine.set_color(RULE)
    bar = figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
    bar.set_label(label, color=MUTED, fontsize=8)
    bar.ax.tick_params(colors=MUTED, labelsize=8, length=2)
    return figure


def draw_edge_circuit(edges: Sequence[Edge], universe: Sequence[Edge], *, labels: bool = True) -> Figure:
    """A column for each layer, a point for each head and MLP that has an edge, a line for each edge.

    Lines have the colour of what reads: blue attention, orange cross-attention, green an MLP, black the logits.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from hooked_whisper.analysis.figures import new_figure
    from hooked_whisper.analysis.plots import COLOURS, INK, MUTED, RULE

    parts = list(dict.fromkeys(part for e in edges for part in (e.writer.part, component(e.reader))))
    columns: dict[tuple[int, int], list[Node]] = {}
    for part in sorted(parts, key=lambda part: (_column(part), _within(part))):
        columns.setdefault(_column(part), []).append(part)
    gap = {0: 0.0, 1: 1.0}  # an empty column between the stacks
    place_of = {
        part: (x + gap[column[0]] + 0.22 * _within(part)[0], float(y))
        for x, (column, here) in enumerate(columns.items())
        for y, part in enumerate(here)
    }
    tallest = max((len(here) for here in columns.values()), default=1)
    figure = new_figure(max(6.0, 1.3 * len(columns) + 1), max(3.0, 0.32 * tallest + 1.4))
    ax = figure.add_subplot()
    drawn: dict[tuple[Node, Node], int] = {}
    for edge in edges:
        ends = (edge.writer.part, component(edge.reader))
        drawn[ends] = drawn.get(ends, 0) + 1
    for (writer, reader), n in drawn.items():
        (x0, y0), (x1, y1) = place_of[writer], place_of[reader]
        style = {"arrowstyle": "-", "color": COLOURS[_colour(reader)], "alpha": 0.55, "linewidth": 0.6 + 0.6 * n}
        ax.annotate("", xy=(x1, y1), xytext=(x0, y0), arrowprops=style)
    for part, (x, y) in place_of.items():
        ax.plot([x], [y], marker="o", markersize=6, color=COLOURS[_colour(part)], linestyle="none")
        if labels:
            ax.text(x + 0.08, y + 0.16, _label(part), fontsize=6, color=INK, va="bottom")
    for x, (stack, layer) in enumerate(columns):
        name = f"{_STACKS[stack]} {layer}" if layer >= 0 and layer < 1000 else _STACKS[stack]
        ax.text(x + gap[stack], -0.7, name, fontsize=8, color=MUTED, ha="left", va="top")
    ax.axhline(-0.5, color=RULE, linewidth=0.8)
    ax.set_title(f"{len(edges)} of {len(universe)} edges", loc="left", fontsize=10, color=INK)
    ax.set_ylim(-1.4, tallest + 0.4)
    ax.set_xlim(-0.4, len(columns) + 1.2)
    ax.set_axis_off()
    return figure


def _column(part: Node) -> tuple[int, int]:
    """Stack and layer; streams that first layers read stand at -1, the logits behind the last layer."""
    if part.hook == "hook_logits":
        return 1, 1000
    stack = _STACKS.index(part.stack)
    return (stack, -1) if part.hook.endswith("hook_resid_pre") else (stack, part.layer or 0)


def _within(part: Node) -> tuple[int, int]:
    """In a layer self-attention comes before cross-attention, and that before the MLP."""
    return ("attn", "cross", "mlp", "resid").index(_colour(part)) % 3, part.head or 0


def _colour(part: Node) -> str:
    for name, colour in (("cross_attn", "cross"), ("attn", "attn"), ("mlp", "mlp")):
        if name in part.hook:
            return colour
    return "resid"


def _label(part: Node) -> str:
    if part.hook.endswith("hook_resid_pre"):
        return "embed"
    if part.head is not None:
        return f"{'cross' if 'cross' in part.hook else 'self'}.{part.head}"
    return "logits" if part.hook == "hook_logits" else "mlp"
