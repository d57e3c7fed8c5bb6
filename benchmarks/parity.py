"""How exactly the hooked model is transformers' Whisper: whisper-base, float32, on the shipped speech.

    python -m benchmarks.parity --out benchmarks/results/parity.md

Differences are the largest absolute one, relative to the largest activation of the same tensor. The tests assert bounds
on the same quantities; this prints the figures themselves.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from torch import Tensor
from tqdm import tqdm
from transformers import WhisperFeatureExtractor

from benchmarks import report
from hooked_whisper import HookedWhisper
from hooked_whisper.checkpoints import load_checkpoint, to_transformers
from hooked_whisper.speech import Clip, clips

LANGUAGES = ("en", "es", "fr", "it", "ru")
CLIPS_EACH = 4
LENGTHS = (1, 2, 3, 7, 64, 448)
LONG_SECONDS = 130.0
PAUSE = torch.zeros(8_000)  # half a second between joined clips


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference over the largest activation."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def layer_outputs(layers: Any, call: Any) -> tuple[list[Tensor], Any]:
    """What each of transformers' layers returns during `call`, and what the call returns."""
    seen: list[Tensor] = []
    keep = lambda _module, _inputs, out: seen.append(out[0] if isinstance(out, tuple) else out)  # noqa: E731
    handles = [layer.register_forward_hook(keep) for layer in layers]
    out = call()
    for handle in handles:
        handle.remove()
    return seen, out


def encoder_differences(model: HookedWhisper, reference: Any, chosen: list[Clip]) -> tuple[float, Tensor]:
    """Worst difference over the residual streams of all encoder layers and its output; our output."""
    waveforms = [clip.load() for clip in chosen]
    mel = model.to_mel(waveforms)
    theirs, encoded = layer_outputs(reference.model.encoder.layers, lambda: reference.model.encoder(mel))
    names = [f"encoder.blocks.{i}.hook_resid_post" for i in range(model.cfg.encoder.n_layers)]
    _, cache = model.run_with_cache(waveforms, names_filter=[*names, "encoder.hook_out"])
    worst = max(relative(cache[name], layer) for name, layer in zip(names, theirs, strict=True))
    return max(worst, relative(cache["encoder.hook_out"], encoded.last_hidden_state)), cache["encoder.hook_out"]


def decoder_differences(model: HookedWhisper, reference: Any, frames: Tensor, length: int) -> tuple[float, float]:
    """Worst difference over the residual streams of all decoder layers, and that of the logits, on random tokens."""
    assert model.tokenizer is not None
    tokens = torch.randint(0, model.cfg.d_vocab, (len(frames), length), generator=torch.Generator().manual_seed(length))
    tokens[:, 0] = model.tokenizer.sot
    call = functools.partial(reference, encoder_outputs=(frames,), decoder_input_ids=tokens)
    theirs, out = layer_outputs(reference.model.decoder.layers, call)
    names = [f"decoder.blocks.{i}.hook_resid_post" for i in range(model.cfg.decoder.n_layers)]
    kept, hooks, _ = model.get_caching_hooks(names)
    with model.hooks(fwd_hooks=hooks):
        logits = model.decode(tokens, frames)
    worst = max(relative(kept[name], layer) for name, layer in zip(names, theirs, strict=True))
    return worst, relative(logits, out.logits)


def same_transcripts(model: HookedWhisper, reference: Any, chosen: list[Clip], **options: Any) -> int:
    """How many clips get from both, token for token, the same transcript."""
    same = 0
    for clip in tqdm(chosen, desc=f"transcripts {options or 'greedy'}", leave=False):
        mel = model.to_mel(clip.path)
        common = {"language": clip.language, "task": "transcribe", **options}
        theirs = reference.generate(mel, **common)
        ours = model.generation_adapter().generate(mel, **common)
        same += torch.equal(ours, theirs)
    return same


def long_form(model: HookedWhisper, reference: Any) -> tuple[int, bool]:
    """Tokens of one long file, and whether they are transformers'."""
    from hooked_whisper import Transcript

    assert model.tokenizer is not None
    parts = [part for clip in [*clips("en"), *clips("en")] for part in (clip.load(), PAUSE)]
    audio = torch.cat(parts)[: int(LONG_SECONDS * 16_000)]
    ours = model.transcribe(audio, language="en")
    assert isinstance(ours, Transcript)
    features = WhisperFeatureExtractor()(
        audio.numpy(), sampling_rate=16_000, truncation=False, padding="longest", return_tensors="pt"
    )
    theirs = reference.generate(
        features.input_features, language="en", task="transcribe", return_timestamps=True, return_segments=True
    )
    expected = [token for token in theirs["sequences"][0].tolist() if token != model.tokenizer.eot]
    return len(expected), ours.tokens == expected


def figures(*, transcripts: bool = True) -> str:
    """All figures as Markdown."""
    checkpoint = load_checkpoint("openai/whisper-base")
    model, reference = HookedWhisper.from_checkpoint(checkpoint, device="cpu"), to_transformers(checkpoint)
    encoder = 0.0
    by_length: dict[int, tuple[float, float]] = dict.fromkeys(LENGTHS, (0.0, 0.0))
    for language in tqdm(LANGUAGES, desc="layers", leave=False):
        worst, frames = encoder_differences(model, reference, clips(language)[:CLIPS_EACH])
        encoder = max(encoder, worst)
        for length in LENGTHS:
            found = decoder_differences(model, reference, frames, length)
            by_length[length] = tuple(map(max, by_length[length], found))  # type: ignore[assignment]
    lines = [
        f"{CLIPS_EACH * len(LANGUAGES)} clips, {len(LANGUAGES)} languages, batches of {CLIPS_EACH} of unequal length:",
        "",
        "| what | largest relative difference |",
        "|---|---|",
        f"| encoder, every layer and the output | {encoder:.1e} |",
    ]
    for length, (resid, logits) in by_length.items():
        lines.append(f"| decoder, every layer, {length} tokens | {resid:.1e} |")
        lines.append(f"| logits, {length} tokens | {logits:.1e} |")
    if not transcripts:
        return "\n".join(lines)
    every = clips()
    some = [clip for language in LANGUAGES for clip in clips(language)[:CLIPS_EACH]]
    n_long, equal = long_form(model, reference)
    greedy = same_transcripts(model, reference, every)
    beams = same_transcripts(model, reference, some, num_beams=5)
    stamps = same_transcripts(model, reference, some, return_timestamps=True)
    lines += [
        "",
        "| transcripts that are transformers', token for token | |",
        "|---|---|",
        f"| greedy | {greedy} of {len(every)} clips |",
        f"| 5 beams | {beams} of {len(some)} clips |",
        f"| timestamps | {stamps} of {len(some)} clips |",
        f"| one file of {LONG_SECONDS:.0f} s, {n_long} tokens | {'the same' if equal else 'different'} |",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--layers", action="store_true", help="leave out the transcripts, which take most of the time")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    with torch.no_grad():
        text = figures(transcripts=not arguments.layers)
    report.publish(f"{report.head('torch', 'transformers')}\n{text}", arguments.out)


if __name__ == "__main__":
    main()
