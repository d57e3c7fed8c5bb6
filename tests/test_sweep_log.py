"""Sweep logs: what is written is read, a torn line is dropped, and another sweep is told from this one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from small import small_config, small_inputs, small_model

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.contrast import ModelInput
from hooked_whisper.analysis.nodes import Node
from hooked_whisper.analysis.sweep_log import SweepLog, sweep_fingerprint

NODES = [Node("hook_mel"), Node("encoder.blocks.0.attn.hook_z", head=1, span=(2, 5))]
ABOUT = {"what": "test", "fingerprint": "abc", "clean": [1.0, -2.5]}


@dataclass(frozen=True)
class Scaled:
    factor: float
    weights: torch.Tensor


def test_figures_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "sweep.jsonl"
    log = SweepLog(path, ABOUT)
    assert log.read(NODES) == {}
    figures = {NODES[0]: [0.1, 1 / 3], NODES[1]: [1e-300, -7.0]}
    for node, values in figures.items():
        log.add(node, values)
    assert SweepLog(path, ABOUT).read(NODES) == figures


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_torn_line_is_dropped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "sweep.jsonl"
    log = SweepLog(path, ABOUT)
    log.add(NODES[0], [1.0])
    log.add(NODES[1], [2.0])
    path.write_bytes(path.read_bytes()[:-cut])
    again = SweepLog(path, ABOUT)
    assert again.read(NODES) == {NODES[0]: [1.0]}
    again.add(NODES[1], [3.0])
    assert SweepLog(path, ABOUT).read(NODES) == {NODES[0]: [1.0], NODES[1]: [3.0]}


def test_a_torn_first_line_begins_the_sweep_anew(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    SweepLog(path, ABOUT)
    whole = path.read_bytes()
    path.write_bytes(whole[:10])
    SweepLog(path, ABOUT)
    assert path.read_bytes() == whole


def test_another_sweep_is_refused_and_rounding_is_not(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    SweepLog(path, ABOUT)
    SweepLog(path, {**ABOUT, "clean": [1.0 + 1e-6, -2.5]})
    for other, message in (
        ({**ABOUT, "fingerprint": "abd"}, "is of another sweep: its fingerprint is abc, this one's abd"),
        ({**ABOUT, "clean": [1.1, -2.5]}, "its clean is"),
        ({**ABOUT, "clean": [1.0]}, "its clean is"),
        ({"what": "test"}, "holds no sweep of this kind"),
    ):
        with pytest.raises(AnalysisError, match=message):
            SweepLog(path, other)
    path.write_text("[1]\n")
    with pytest.raises(AnalysisError, match="holds no sweep of this kind"):
        SweepLog(path, ABOUT)


def test_a_damaged_line_is_told(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    log = SweepLog(path, ABOUT)
    log.add(NODES[0], [1.0])
    path.write_text(path.read_text().replace('"effects"', '"efects"'))
    with pytest.raises(AnalysisError, match="line 2 of .* is damaged: delete it"):
        SweepLog(path, ABOUT).read(NODES)


def test_the_fingerprint_tells_apart_what_matters() -> None:
    model = small_model()
    inputs = ModelInput(*small_inputs(small_config()))
    metric = Scaled(1.0, torch.ones(2))
    known = sweep_fingerprint(model, inputs, NODES, metric, "noise")
    assert known == sweep_fingerprint(small_model(), inputs, list(NODES), Scaled(1.0, torch.ones(2)), "noise")
    others = [
        sweep_fingerprint(small_model(seed=1), inputs, NODES, metric, "noise"),
        sweep_fingerprint(model, replace(inputs, mel=inputs.mel + 1e-9), NODES, metric, "noise"),
        sweep_fingerprint(model, replace(inputs, tokens=inputs.tokens.flip(0)), NODES, metric, "noise"),
        sweep_fingerprint(model, inputs, NODES[::-1], metric, "noise"),
        sweep_fingerprint(model, inputs, NODES, replace(metric, factor=2.0), "noise"),
        sweep_fingerprint(model, inputs, NODES, replace(metric, weights=torch.zeros(2)), "noise"),
        sweep_fingerprint(model, inputs, NODES, len, "noise"),
        sweep_fingerprint(model, inputs, NODES, metric, "denoise"),
    ]
    assert len({known, *others}) == 1 + len(others)
