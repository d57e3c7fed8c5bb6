"""What looking inside costs: forward, caches and greedy decoding, against transformers, torch hooks and nnsight.

    python -m benchmarks.model_cost                     # whisper-base, one clip filling 30 s
    python -m benchmarks.model_cost --rounds 9 --out benchmarks/results/model_cost.md

A peer that is not installed is named and left out (`pip install nnsight`).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from benchmarks import report
from benchmarks.measure import compare, table
from hooked_whisper import HookedWhisper
from hooked_whisper.checkpoints import load_checkpoint, to_transformers
from hooked_whisper.speech import clips

PATTERN_LAYER = 3
TEXT_TOKENS = 20
N_WINDOWS = 8


def full_window(model: HookedWhisper, batch: int = 1) -> Tensor:
    """Spectrograms of 30 s of real speech."""
    waveform = torch.cat([clip.load() for clip in clips(language="en")])[: 30 * 16_000]
    return model.to_mel([waveform] * batch)


def eight_windows(model: HookedWhisper) -> Tensor:
    """Spectrograms of eight windows of 30 s, each of other English sentences or of the same in another order."""
    waveforms = [clip.load() for clip in clips(language="en")]
    orders = [waveforms[i:] + waveforms[:i] for i in range(0, 2 * N_WINDOWS, 2)]
    return model.to_mel([torch.cat(order)[: 30 * 16_000] for order in orders])


def with_torch_hooks(model: Any, modules: list[Any], mel: Tensor, tokens: Tensor) -> list[Any]:
    """A plain forward of transformers with a torch forward hook that keeps the output of each module."""
    kept: list[Any] = []
    handles = [module.register_forward_hook(lambda _m, _i, out: kept.append(out)) for module in modules]
    model(input_features=mel, decoder_input_ids=tokens)
    for handle in handles:
        handle.remove()
    return kept


def nnsight_residuals(traced: Any, mel: Tensor, tokens: Tensor) -> list[Any]:
    """nnsight saving the output of every encoder and decoder layer."""
    with traced.trace(input_features=mel, decoder_input_ids=tokens):
        saved = list().save()  # type: ignore[attr-defined]  # noqa: C408 (nnsight's own list)
        for layer in traced.model.encoder.layers:
            saved.append(layer.output)
        for layer in traced.model.decoder.layers:
            saved.append(layer.output)
    return saved


def nnsight_one(traced: Any, mel: Tensor, tokens: Tensor) -> Any:
    """nnsight saving one residual."""
    with traced.trace(input_features=mel, decoder_input_ids=tokens):
        saved = traced.model.encoder.layers[PATTERN_LAYER].output.save()
    return saved  # noqa: RET504 (nnsight runs the block elsewhere and hands the name back)


def nnsight_pattern(traced: Any, mel: Tensor, tokens: Tensor) -> Any:
    """nnsight saving one layer's attention pattern, which needs eager attention everywhere."""
    with traced.trace(input_features=mel, decoder_input_ids=tokens):
        saved = traced.model.encoder.layers[PATTERN_LAYER].self_attn.output[1].save()
    return saved  # noqa: RET504 (nnsight runs the block elsewhere and hands the name back)


def greedy(generator: Any, frames: Tensor) -> Tensor:
    """The greedy transcript of windows from their encoder output: tokens [batch pos]."""
    return generator.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=frames),
        language="en",
        task="transcribe",
        force_unique_generate_call=True,  # one window each: no seeking on after it
    )


def sections(rounds: int) -> list[str]:
    """All tables."""
    checkpoint = load_checkpoint("openai/whisper-base")
    model = HookedWhisper.from_checkpoint(checkpoint, device="cpu")
    sdpa, eager = to_transformers(checkpoint), to_transformers(checkpoint)
    eager.set_attn_implementation("eager")
    mel = full_window(model)
    text = model.to_tokens(" ".join(clip.text for clip in clips(language="en")[:3]))[:TEXT_TOKENS]
    assert model.tokenizer is not None
    tokens = torch.tensor([[*model.tokenizer.prompt("en"), *text]])
    layers = [*sdpa.model.encoder.layers, *sdpa.model.decoder.layers]
    leaves = [module for module in sdpa.modules() if not list(module.children())]
    pattern = f"encoder.blocks.{PATTERN_LAYER}.attn.hook_pattern"
    residual = f"encoder.blocks.{PATTERN_LAYER}.hook_resid_post"

    def plain() -> Any:
        return sdpa(input_features=mel, decoder_input_ids=tokens)

    def ours(names: Any) -> Callable[[], Any]:
        return lambda: model.run_with_cache(mel, tokens, names_filter=names, return_type="logits")

    forward: dict[str, Callable[[], Any]] = {
        "transformers, SDPA (floor)": plain,
        "hooked-whisper": lambda: model(mel, tokens),
        "transformers, eager": lambda: eager(input_features=mel, decoder_input_ids=tokens),
    }
    all_hooks = {
        "transformers, SDPA, nothing kept (floor)": plain,
        "hooked-whisper, all hooks": ours(None),
        "torch forward hooks on every leaf module of transformers": lambda: with_torch_hooks(sdpa, leaves, mel, tokens),
        "transformers, eager, hidden states and attentions": lambda: eager(
            input_features=mel, decoder_input_ids=tokens, output_hidden_states=True, output_attentions=True
        ),
    }
    one = {
        "transformers, SDPA, nothing kept (floor)": plain,
        "hooked-whisper, one residual": ours(residual),
        "torch forward hook on one layer": lambda: with_torch_hooks(sdpa, [layers[PATTERN_LAYER]], mel, tokens),
    }
    patterns = {
        "transformers, SDPA, nothing kept (floor)": plain,
        "hooked-whisper, one layer's pattern": ours(pattern),
        "transformers, eager, attentions": lambda: eager(
            input_features=mel, decoder_input_ids=tokens, output_attentions=True
        ),
    }
    if importlib.util.find_spec("nnsight") is None:
        print("nnsight is not installed, so it is not measured: pip install nnsight", file=sys.stderr)
    else:
        nnsight = importlib.import_module("nnsight")
        traced, traced_eager = nnsight.NNsight(sdpa), nnsight.NNsight(eager)
        all_hooks["nnsight, every layer's output"] = lambda: nnsight_residuals(traced, mel, tokens)
        one["nnsight, one residual"] = lambda: nnsight_one(traced, mel, tokens)
        patterns["nnsight, one layer's pattern"] = lambda: nnsight_pattern(traced_eager, mel, tokens)
    out = [
        table("Plain forward, 30 s and 24 tokens", compare("transformers, SDPA (floor)", forward, rounds)),
        *(
            table(title, compare("transformers, SDPA, nothing kept (floor)", contenders, rounds))
            for title, contenders in (
                ("Everything cached", all_hooks),
                ("One residual cached", one),
                ("One layer's attention pattern cached", patterns),
            )
        ),
    ]
    _, cache = model.run_with_cache(mel, tokens)
    named = sum(1 for name in model.hook_names() if name in cache or cache[name] is not None)
    out.append(f"A full cache of 30 s holds {cache.nbytes / 1e6:.0f} MB; {named} activations can be read from it.\n")
    out.append("### Greedy decoding from encoder output: transformers' time over ours\n")
    out.append("| windows of 30 s | tokens in the longest | ratio (min to max) |\n|---|---|---|")
    windows = eight_windows(model)
    adapter = model.generation_adapter()
    out[-1] += "".join(f"\n{decoding(sdpa, adapter, model.encode_mel(windows[:batch]), rounds)}" for batch in (1, 8))
    out[-1] += "\n"
    return out


def decoding(reference: Any, adapter: Any, frames: Tensor, rounds: int) -> str:
    """Greedy decoding of windows of 30 s from their encoder output, as a speed-up over transformers."""
    ours, theirs = greedy(adapter, frames), greedy(reference, frames)
    if not torch.equal(ours, theirs):
        raise RuntimeError("the transcripts differ, so their times cannot be compared")
    contenders: dict[str, Callable[[], Any]] = {
        "hooked-whisper": lambda: greedy(adapter, frames),
        "transformers": lambda: greedy(reference, frames),
    }
    row = compare("hooked-whisper", contenders, rounds)[1]
    return f"| {len(frames)} | {ours.shape[1]} | {row.ratio:.2f} ({row.spread[0]:.2f} to {row.spread[1]:.2f}) |"


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None, help="torch threads; torch's own choice when left out")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    with torch.no_grad():
        parts = sections(arguments.rounds)
    head = report.head("torch", "transformers", notes=f"{torch.get_num_threads()} threads, {arguments.rounds} rounds")
    report.publish("\n".join([head, *parts]), arguments.out)


if __name__ == "__main__":
    main()
