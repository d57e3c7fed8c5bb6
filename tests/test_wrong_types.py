"""What a user passes by mistake, of a type that no signature has: one clear message each.

Types are checked in every other test, before the code sees an argument. Users have no such check, so this runs in a
process of its own that has none either.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CASES = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from small import small_inputs, small_model
from hooked_whisper.errors import HookedWhisperError
from hooked_whisper.inputs import language_codes
from hooked_whisper.transcription import transcribe
from hooked_whisper.audio import load_audio

model = small_model()
mel, tokens = small_inputs(model.cfg)
look = lambda x, hook: None
pairs = [5, "hook_mel", ["hook_mel"], [("hook_mel",)], ("hook_mel", look), {"hook_mel": look}, None]
cases = {
    **{f"name {name!r}": (lambda name=name: model.add_hook(name, look), "got") for name in (5, None, [5], b"x")},
    **{f"pattern {name!r}": (lambda name=name: model.hook_names(name), "A pattern is a string") for name in (5, None)},
    **{f"filter {name!r}": (lambda name=name: model.run_with_cache(mel, tokens, names_filter=name), "got")
       for name in (5, object(), [None])},
    **{f"pairs {i}": (lambda p=p: model.run_with_hooks(mel, tokens, fwd_hooks=p), "fwd_hooks is a list of pairs")
       for i, p in enumerate(pairs)},
    "no function": (lambda: model.run_with_hooks(mel, tokens, fwd_hooks=[("hook_mel", 5)]),
                    "The hook on 'hook_mel' cannot be called: expected a function of (activation, hook), got 5"),
    "direction": (lambda: model.add_hook("hook_mel", look, dir="sideways"), "expected 'fwd' or 'bwd'"),
    "language": (lambda: language_codes(5, 1, None), "a name or a code"),
    "languages": (lambda: language_codes([5], 1, None), "a name or a code, such as 'french' or 'fr'; got 5"),
    "text": (lambda: model(mel, 3.5), "Text must be a string, tokens, or a list of either, got float"),
    "texts": (lambda: model(mel, [[1], None]), "got None among them"),
    "audio": (lambda: load_audio(5), "Audio of type int cannot be read"),
    "rate": (lambda: load_audio(np.zeros(9), "16000"), "sampling_rate must be a number of Hz, got '16000'"),
    "beams": (lambda: transcribe(model, mel, num_beams="2"), "num_beams must be a whole number"),
    "batch": (lambda: transcribe(model, mel, batch_size=1.5), "batch_size must be a whole number"),
    "temperature": (lambda: transcribe(model, mel, temperature="a"), "temperature is a number of at least 0"),
    "device": (lambda: model.run_with_cache(mel, tokens, device=[]), "Unknown device []"),
}
"""

ANALYSIS = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from small import small_config, small_inputs, small_model
from hooked_whisper.analysis.ablation import ablate, ablated, node_statistics
from hooked_whisper.analysis.alignment_heads import check_heads, without_heads
from hooked_whisper.analysis.attribution import attribute
from hooked_whisper.analysis.circuits import Circuit, CircuitTask
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.corruption import noise, silence, translation
from hooked_whisper.analysis.direct_attribution import direct_attribution
from hooked_whisper.analysis.edge_attribution import attribute_edges
from hooked_whisper.analysis.edge_patching import patch_edges
from hooked_whisper.analysis.edges import Edge, edges
from hooked_whisper.analysis.feature_attribution import attribute_features
from hooked_whisper.analysis.learned_circuits import learned_scores
from hooked_whisper.analysis.lens import logit_lens
from hooked_whisper.analysis.metrics import KLDivergence, LogitDifference, LogProbability
from hooked_whisper.analysis.nodes import Node, nodes
from hooked_whisper.analysis.patching import patch
from hooked_whisper.analysis.rollout import attention_rollout
from hooked_whisper.errors import HookedWhisperError

def metric(logits):
    return logits[:, -1, 3] - logits[:, -1, 4]

model = small_model()
mel, tokens = small_inputs(model.cfg)
sides = [ModelInput(*small_inputs(model.cfg, seed=seed)) for seed in (1, 2)]
pair = Contrast(*sides, torch.ones(2, 5, dtype=torch.bool), (1, 1))
mlps, some_edges = nodes(model, "mlp"), edges(model)[:2]
task, scores, sound = CircuitTask(model, pair, mlps, metric), torch.zeros(5), torch.ones(16_000)
circuit = Circuit(list(mlps[:2]), mlps)
assert circuit == Circuit.from_json(circuit.to_json()) and len({circuit}) == 1  # lists become tuples
assert Node("encoder.hook_out", span=[0, 2]) == Node("encoder.hook_out", span=(0, 2))
_, cache = model.run_with_cache(mel, tokens)

def inside(context):
    with context:
        pass

cases = {
    "an edge": (lambda: patch(model, pair, some_edges, metric), "Expected nodes, such as nodes(model) or"),
    "nodes": (lambda: patch_edges(model, pair, mlps, metric), "Expected edges, such as edges(model)"),
    "texts": (lambda: patch(model, pair, ["decoder.2.mlp_out"], metric), "got a list of str: ['decoder.2.mlp_out']"),
    "one node": (lambda: patch(model, pair, mlps[0], metric), "got a Node"),
    "one ablated": (lambda: inside(ablated(model, mlps[0])), "got a Node"),
    "universe": (lambda: CircuitTask(model, pair, ["decoder.2.mlp_out"], metric), "Expected nodes, such as"),
    "a circuit of texts": (lambda: Circuit(("a",), ("a",)), "got a tuple of str: ('a',)"),
    "writers": (lambda: edges(model, writers="decoder.2.mlp_out"), "got 'decoder.2.mlp_out'"),
    "edge of texts": (lambda: Edge("a", "b"), "Expected a node that writes, got 'a'"),
    "one side": (lambda: patch(model, pair.clean, mlps, metric), "Expected a contrast, such as Contrast.of("),
    "one side's gradient": (lambda: attribute(model, pair.clean, mlps, metric), "got a ModelInput"),
    "both sides": (lambda: ablate(model, pair, mlps, metric), "Expected an input, such as ModelInput.of("),
    "task": (lambda: circuit.evaluate(pair), "Expected a task, such as CircuitTask("),
    "tasks": (lambda: learned_scores(pair, 2), "Expected a task, such as CircuitTask("),
    "corpus": (lambda: node_statistics(model, sides[0], mlps), "Expected a list of inputs"),
    "waveforms": (lambda: node_statistics(model, [sound], mlps), "got a list of Tensor"),
    "an SAE's name": (lambda: attribute_features(model, "whisper-base/x", pair, metric), "Expected an SAE, such as"),
    "lens": (lambda: logit_lens(model), "Expected a cache, which model.run_with_cache"),
    "direct": (lambda: direct_attribution(model, 3), "Expected a cache"),
    "rollout": (lambda: attention_rollout(model, "encoder"), "Expected a cache"),
    "tuned": (lambda: logit_lens(cache, tuned="lens.safetensors"), "Expected a tuned lens"),
    "no metric": (lambda: patch(model, pair, mlps, None), "Expected a metric, a function of logits such as"),
    "no metric to attribute": (lambda: attribute(model, pair, mlps, None), "Expected a metric"),
    "no metric of edges": (lambda: attribute_edges(model, pair, None), "Expected a metric"),
    "bare tokens": (lambda: LogitDifference(1, 2), "Expected a tuple of token numbers, got 1"),
    "pos": (lambda: LogitDifference((1,), (2,), "3"), "pos='3': expected a whole number"),
    "tokens of one clip": (lambda: LogProbability(tokens[0], 2), "Expected tokens as whole numbers [batch pos]"),
    "tokens as floats": (lambda: LogProbability(tokens.float(), 2), "got a tensor of float32, shape (2, 5)"),
    "mask": (lambda: LogProbability(tokens, 2, torch.ones(2, 4, dtype=torch.bool)), "a mask of True and False, shape"),
    "reference": (lambda: KLDivergence(torch.zeros(5, 31)), "Expected reference logits [batch pos vocab]"),
    "layers": (lambda: nodes(model, layers=5), "numbers of layers for layers=, such as layers=[5], got 5"),
    "span": (lambda: Node("encoder.hook_out", span=(0.5, 1.0)), "expected (start, end), two whole numbers"),
    "head": (lambda: Node("encoder.blocks.0.attn.hook_z", head="3"), "='3': expected a whole number of at least 0"),
    "hook": (lambda: Node(None), "Expected the name of a hook"),
    "parse": (lambda: Node.parse(None), "Expected a node as text, such as 'decoder.3.cross.head.1', got None"),
    "batch_size": (lambda: patch(model, pair, mlps, metric, batch_size=1.5), "batch_size=1.5: expected a whole number"),
    "steps": (lambda: attribute(model, pair, mlps, metric, method="integrated", steps=2.5), "steps=2.5: expected"),
    "n": (lambda: Circuit.top(mlps, scores, 2.5), "n=2.5: expected a whole number"),
    "scores": (lambda: Circuit.top(mlps, [0.0] * 5, 2), "Expected scores as a tensor, one for each node"),
    "one circuit": (lambda: task.faithfulness(mlps), "Expected circuits, each a list of nodes, such as"),
    "circuits": (lambda: task.faithfulness([circuit]), "such as [circuit.nodes], got a list of Circuit"),
    "seconds": (lambda: silence(sound, 0.5), "Expected a span (start, end) in seconds, such as (0.5, 1.0), got 0.5"),
    "snr": (lambda: noise(sound, "3"), "snr='3' dB: expected a finite number"),
    "seed": (lambda: noise(sound, 3.0, seed=None), "seed=None: expected a whole number"),
    "translation": (lambda: translation(sound, "fr"), "Expected a shipped clip"),
    "select": (lambda: pair.select(0), "Expected numbers of clips, such as [0], got 0"),
    "heads": (lambda: check_heads((5, 1), 6, 8), "Expected pairs of (layer, head), such as [(5, 1)], got"),
    "without heads": (lambda: without_heads((5, 1)), "Expected pairs of (layer, head)"),
}
"""
RUN = """
for name, (call, message) in cases.items():
    print(f"at {name}", file=sys.stderr)  # shown if an error of another kind ends this process
    try:
        call()
    except HookedWhisperError as error:
        if message not in str(error):
            print(f"{name}: {error}")
    else:
        print(f"{name}: accepted")
if model.list_hooks():
    print("hooks were left behind")
print(f"{len(cases)} cases")
"""


@pytest.mark.parametrize(("cases", "n"), [(CASES, 28), (ANALYSIS, 48)], ids=["model", "analysis"])
def test_each_is_refused_with_a_message_of_its_own(cases: str, n: int, root: Path) -> None:
    command = [sys.executable, "-c", cases + RUN, str(root / "tests")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{n} cases\n"
