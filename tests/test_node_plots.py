"""Pictures of nodes: every figure stands in the cell of its node, under its name."""

from __future__ import annotations

import numpy as np
import torch
from small import small_model

from hooked_whisper.analysis.node_plots import plot_nodes
from hooked_whisper.analysis.nodes import Node, nodes


def test_heads_stand_in_rows_of_layers() -> None:
    chosen = nodes(small_model(), ["head", "mlp"], stacks=["decoder"])
    values = torch.arange(len(chosen)).double()
    figure = plot_nodes(chosen, values, "effect")
    panels = {ax.get_title(loc="left"): ax for ax in figure.axes if ax.images and ax.get_title(loc="left")}
    assert list(panels) == ["decoder self-attention heads", "decoder cross-attention heads", "decoder hook_mlp_out"]
    cross = panels["decoder cross-attention heads"]
    cells = np.asarray(cross.images[0].get_array())
    assert cells.shape == (3, 4)
    for node, value in zip(chosen, values.tolist(), strict=True):
        if "cross" in node.hook:
            assert cells[node.layer, node.head] == value
    assert [label.get_text() for label in cross.get_xticklabels()] == ["0", "1", "2", "3"]
    assert cross.images[0].get_clim() == (-float(values.max()), float(values.max()))


def test_windows_stand_in_columns_and_gaps_stay_empty() -> None:
    z = "encoder.blocks.{}.attn.hook_z"
    chosen = [Node(z.format(0), head=1, span=(0, 50)), Node(z.format(1), head=0, span=(50, 100))]
    (ax, _) = plot_nodes(chosen, torch.tensor([1.0, -2.0]), "effect").axes
    cells = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert np.array_equal(cells, [[1.0, np.nan], [np.nan, -2.0]], equal_nan=True)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.0 s", "1.0 s"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0.1", "1.0"]


def test_tokens_units_and_whole_activations_have_names() -> None:
    for chosen, columns in (
        ([Node("decoder.blocks.0.hook_mlp_out", span=(2, 3)), Node("decoder.blocks.0.hook_mlp_out", span=(3, 6))],
         ["2", "3:6"]),
        ([Node("decoder.blocks.0.mlp.hook_post", unit=7), Node("decoder.blocks.1.mlp.hook_post", unit=9)], ["7", "9"]),
        ([Node("encoder.hook_out")], ["all"]),
        ([Node("hook_mel", span=(0, 50)), Node("hook_mel", span=(50, 100))], ["0.0 s", "0.5 s"]),
    ):  # fmt: skip
        ax = plot_nodes(chosen, torch.ones(len(chosen)), "effect").axes[0]
        assert [label.get_text() for label in ax.get_xticklabels()] == columns


def test_nothing_but_zeros_can_be_drawn() -> None:
    figure = plot_nodes([Node("hook_logits")], torch.zeros(1), "effect")
    figure.draw_without_rendering()
    assert figure.axes[-1].get_ylabel() == "effect"
