"""Pictures of edges: every figure in its cell, every line between the right parts."""

from __future__ import annotations

import numpy as np
import torch
from small import small_model

from hooked_whisper.analysis.circuits import Circuit
from hooked_whisper.analysis.edge_plot import draw_edge_circuit, plot_edges
from hooked_whisper.analysis.edges import edges
from hooked_whisper.analysis.nodes import Node


def test_a_table_of_writers_by_readers() -> None:
    model = small_model()
    into = edges(model, readers=[Node("encoder.blocks.1.hook_mlp_in"), Node("encoder.blocks.0.hook_mlp_in")])
    values = torch.arange(len(into)).double()
    figure = plot_edges(into, values, "change")
    cells = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    assert cells.shape == (6, 2)
    assert sorted(cells[~np.isnan(cells)].tolist()) == values.tolist()
    names = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert names == ["encoder.1.mlp_in", "encoder.0.mlp_in"]
    row = [text.get_text() for text in figure.axes[0].get_yticklabels()].index("encoder.0.resid_pre")
    assert cells[row].tolist() == [float(values[0]), float(values[6])]


def test_a_circuit_of_edges() -> None:
    model = small_model()
    every = edges(model)
    kept = every[::40]
    circuit = Circuit(tuple(kept), tuple(every))
    (ax,) = circuit.draw().axes
    assert f"{len(kept)} of {len(every)} edges" in ax.get_title(loc="left")
    written = {text.get_text() for text in ax.texts}
    assert {"logits", "embed"} & written
    assert {"encoder 0", "decoder 2"} <= written
    assert len(draw_edge_circuit(kept, every, labels=False).axes[0].texts) < len(ax.texts)
    assert Circuit((), tuple(every)).draw().axes
