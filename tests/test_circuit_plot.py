"""A drawn circuit shows every kept node once, in the column of its layer, and counts those left out."""

from __future__ import annotations

from small import small_model

from hooked_whisper.analysis.circuit_plot import draw_circuit
from hooked_whisper.analysis.nodes import Node, nodes


def test_kept_nodes_stand_in_their_layers_column() -> None:
    universe = [Node("hook_mel"), *nodes(small_model(), ["head", "mlp"]), Node("encoder.hook_out"), Node("hook_logits")]
    kept = [Node("encoder.blocks.1.attn.hook_z", head=0), Node("decoder.blocks.2.cross_attn.hook_z", head=3),
            Node("decoder.blocks.2.hook_mlp_out"), Node("hook_logits"), Node("hook_mel")]  # fmt: skip
    figure = draw_circuit(kept, universe)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    marks = [line for line in ax.lines if line.get_marker() == "o"]
    assert len(marks) == len(kept)
    at = {text.get_text(): text.get_position() for text in ax.texts}
    assert at["self.head.0"][0] < at["cross.head.3"][0] == at["mlp_out"][0] < at["logits"][0]
    assert at["mel"][0] < at["self.head.0"][0]
    assert at["cross.head.3"][1] != at["mlp_out"][1]
    numbers = [text.get_text() for text in ax.texts if text.get_text().isdigit()]
    assert numbers == ["0", "1", "0", "1", "2"]
    left_out = [int(text.get_text().split()[0]) for text in ax.texts if text.get_text().endswith(" out")]
    assert sum(left_out) == len(universe) - len(kept)
    assert ax.get_title(loc="left") == f"{len(kept)} of {len(universe)} nodes"


def test_one_stack_and_no_nodes() -> None:
    universe = nodes(small_model(), "mlp", stacks=["encoder"])
    (ax,) = draw_circuit([], universe).axes
    assert not [line for line in ax.lines if line.get_marker() == "o"]
    (ax,) = draw_circuit(universe, universe, labels=False).axes
    assert not any("mlp" in text.get_text() for text in ax.texts)
