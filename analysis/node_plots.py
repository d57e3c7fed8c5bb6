"""Pictures of one figure for each node: layers down, heads or windows to the right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis.edges import Edge
from hooked_whisper.analysis.nodes import Node
from hooked_whisper.mel import FRAMES_PER_SECOND

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_LABELS = 16


def plot_parts(parts: Sequence[Node | Edge], values: Float[Tensor, " part"], label: str) -> Figure:
    """`plot_nodes` or `plot_edges`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    found = [part for part in parts if isinstance(part, Edge)]
    if found:
        from hooked_whisper.analysis.edge_plot import plot_edges

        return plot_edges(found, values, label)
    return plot_nodes([part for part in parts if isinstance(part, Node)], values, label)


def plot_nodes(nodes: Sequence[Node], values: Float[Tensor, " node"], label: str) -> Figure:
    """One heatmap for each kind of node (heads of the encoder, MLPs of the decoder, ...), all on one scale.

    Rows are layers (and heads, where nodes have both heads and spans), columns heads, spans or units. The scale is
    symmetric about 0; places without a node stay white.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from hooked_whisper.analysis.plots import INK, MUTED, RULE, Figure

    kinds: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        kinds.setdefault(node.kind, []).append(i)
    tables = [_table([nodes[i] for i in chosen], values[chosen].tolist()) for chosen in kinds.values()]
    heights = [0.24 * len(rows) + 0.9 for rows, _, _ in tables]
    widest = max(len(columns) for _, columns, _ in tables)
    figure = Figure(
        figsize=(min(12.0, max(5.0, 0.32 * widest + 2.6)), sum(heights)), layout="constrained", facecolor="white"
    )
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    limit = max(float(values.abs().max()), 1e-12)
    image = None
    for ax, kind, (rows, columns, cells) in zip(panels, kinds, tables, strict=True):
        image = ax.imshow(cells, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        step_x, step_y = (math.ceil(len(names) / _MOST_LABELS) for names in (columns, rows))
        ax.set_xticks(range(0, len(columns), step_x), columns[::step_x])
        ax.set_yticks(range(0, len(rows), step_y), rows[::step_y])
        ax.set_title(_title(kind), loc="left", fontsize=9, color=INK)
        ax.tick_params(colors=MUTED, labelsize=8, length=2)
        for spine in ax.spines.values():
            spine.set_color(RULE)
    assert image is not None
    bar = figure.colorbar(image, ax=list(panels), fraction=0.04, pad=0.02)
    bar.set_label(label, color=MUTED, fontsize=8)
    bar.ax.tick_params(colors=MUTED, labelsize=8, length=2)
    return figure


def _title(kind: str) -> str:
    """ "decoder cross-attention heads" for a kind of node."""
    text = kind.replace(".blocks.*.", " ")
    return text.replace("cross_attn.hook_z", "cross-attention heads").replace("attn.hook_z", "self-attention heads")


def _table(nodes: Sequence[Node], values: Sequence[float]) -> tuple[list[str], list[str], list[list[float]]]:
    """Names of rows, names of columns, and the figures, NaN where there is no node."""
    both = any(node.span is not None for node in nodes) and any(
        node.head is not None or node.unit is not None for node in nodes
    )
    places = [(_row(node, both), _column(node, both)) for node in nodes]
    rows, columns = (sorted({place[axis] for place in places}) for axis in (0, 1))
    cells = [[math.nan] * len(columns) for _ in rows]
    for (row, column), value in zip(places, values, strict=True):
        cells[rows.index(row)][columns.index(column)] = value
    return [name for _, name in rows], [name for _, name in columns], cells


_Place = tuple[tuple[int, ...], str]  # what it is sorted by, and its name


def _row(node: Node, both: bool) -> _Place:
    layer = -1 if node.layer is None else node.layer
    name = "" if node.layer is None else str(node.layer)
    if not both:
        return (layer,), name
    part = (-1 if node.head is None else node.head, -1 if node.unit is None else node.unit)
    return (layer, *part), ".".join([name, *(str(number) for number in part if number >= 0)])


def _column(node: Node, both: bool) -> _Place:
    if node.span is not None:
        if "frame" in node.position_axis:
            rate = FRAMES_PER_SECOND * (2 if node.position_axis == "mel_frame" else 1)
            return node.span, f"{node.span[0] / rate:.1f} s"
        return node.span, str(node.span[0]) if node.span[1] == node.span[0] + 1 else f"{node.span[0]}:{node.span[1]}"
    if both or (node.head is None and node.unit is None):
        return (-1,), "all"
    number = node.head if node.unit is None else node.unit
    assert number is not None
    return (number,), str(number)
