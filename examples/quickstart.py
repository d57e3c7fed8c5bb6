"""The first look: transcribe real speech, cache every activation, see where the decoder listens, then make it deaf.

python examples/quickstart.py
"""

from __future__ import annotations

from torch import Tensor
from transformer_lens.hook_points import HookPoint

from hooked_whisper import HookedWhisper
from hooked_whisper.speech import clips

FRAMES_PER_SECOND = 50


def main() -> None:
    """Runs all of it and prints what it finds."""
    model = HookedWhisper.from_pretrained("openai/whisper-base")
    clip = clips("en", key="vm-nobodyavail")[0]

    # Without a text, the model's own greedy transcript is fed back in one pass.
    _, cache = model.run_with_cache(clip.path)
    print(f"heard: {cache.text!r} (language: {cache.languages[0]}, {clip.seconds:.1f} s)")
    print(f"activations: {len(cache)}")
    print("residual stream after encoder layer 3:", tuple(cache["encoder.blocks.3.hook_resid_post"].shape))

    # Some cross-attention heads follow the speech: the frame they look at is when the token is said.
    layer, head = model.cfg.alignment_heads[-1]
    pattern = cache[f"decoder.blocks.{layer}.cross_attn.hook_pattern"][0, head]  # [pos key_frame]
    n_frames = round(clip.seconds * FRAMES_PER_SECOND)
    print(f"decoder layer {layer}, head {head} looks at:")
    for token, row in zip(cache.str_tokens(), pattern, strict=True):
        print(f"  {token!r:24} {row[:n_frames].argmax().item() / FRAMES_PER_SECOND:5.2f} s")

    # An edit takes everywhere, also at every step of writing the transcript: nothing between 1.4 and 2 s can be read.
    def deafen(pattern: Tensor, hook: HookPoint) -> None:
        pattern[..., 70:100] = 0

    _, deaf = model.run_with_cache(clip.path, fwd_hooks=[("decoder.blocks.*.cross_attn.hook_pattern", deafen)])
    print(f"heard when deaf from 1.4 to 2 s: {deaf.text!r}")


if __name__ == "__main__":
    main()
