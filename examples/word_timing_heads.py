"""Which cross-attention heads carry word timing? Found by hiding audio, on real speech in five languages.

python examples/word_timing_heads.py            # one sentence in five languages
python examples/word_timing_heads.py 9          # all nine sentences that were not used to develop the score

Checked against the heads that OpenAI publishes for word times, of which the score knows nothing, and by hiding audio
from the heads that it finds, and from all others. Heads are ranked and checked on the same clips.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.alignment_heads import AlignmentScores, Reading, read_tokens
from hooked_whisper.speech import Clip, clips
from hooked_whisper.windows import with_window

# Sentences on which the score was developed; every other key in alphabetical order, and one that was looked at first.
DEVELOPMENT = {*sorted({clip.key for clip in clips()})[::2], "conf-leaderhasleft"}
TOP = 8


def main() -> None:
    """Ranks the heads on held-out clips and prints what it finds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", nargs="?", type=int, default=1, help="how many, each in five languages")
    parser.add_argument("--window", type=int, default=30, help="seconds of the model's window")
    parser.add_argument("--languages", nargs="+", help="English and others; all five if left out")
    options = parser.parse_args()
    longest: dict[str, float] = {}
    for clip in clips():
        longest[clip.key] = max(clip.seconds, longest.get(clip.key, 0.0))
    keys = [key for key in sorted(longest) if key not in DEVELOPMENT and longest[key] <= options.window]
    keys = keys[: options.sentences]
    wanted = set(options.languages or (clip.language for clip in clips()))
    if "en" not in wanted:
        parser.error("--languages: English is among them, because the check at the end is in English")
    by_key = [[clip for clip in clips(key=key) if clip.language in wanted] for key in keys]
    chosen = [clip for some in by_key for clip in some]
    model = with_window(HookedWhisper.from_pretrained("openai/whisper-base"), options.window)
    readings = [reading for some in by_key for reading in read(model, some)]
    scores = AlignmentScores(torch.stack([reading.scores() for reading in readings]))
    published = model.cfg.alignment_heads
    ranking = scores.ranking()
    print(f"{len(chosen)} clips that were not used to develop the score, {len(ranking)} heads; * is published")
    for place, head in enumerate(ranking[:12], start=1):
        mark = "*" if head in published else " "
        print(f"{place:3}. {head[0]}.{head[1]}{mark} {float(scores.scores[head]):.2f}")
    print(f"{len(scores.found(published, 10))} of the {len(published)} published heads are among the first 10")
    for language in dict.fromkeys(clip.language for clip in chosen):
        rows = [i for i, clip in enumerate(chosen) if clip.language == language]
        print(f"  {language} alone: {len(AlignmentScores(scores.per_clip[rows]).found(published, 10))}")

    top, rest = ranking[:TOP], ranking[TOP:]
    late = [head for head in rest if head[0] >= model.cfg.decoder.n_layers // 2]
    print("word times: median distance to where hiding audio costs a token most")
    for name, heads in {
        f"the first {TOP}": top,
        "published": published,
        "all": ranking,
        "all but the first": rest,
    }.items():
        print(f"  {name:18} {error(readings, heads):.2f} s")
    english = [i for i, clip in enumerate(chosen) if clip.language == "en"]
    print(f"hiding audio from some heads only, the worst stretch for each token, {len(english)} English clips")
    whole = statistics.mean(float(readings[i].weights.mean()) for i in english)
    print(f"  {'all':18} {whole:.2f} nats a token")
    some, text = [chosen[i] for i in english], ["".join(readings[i].labels) for i in english]
    for name, heads in {f"the first {TOP}": top, f"{TOP} others": late[-TOP:], "all but the first": rest}.items():
        again = read(model, some, heads=heads, text=text)
        cost = statistics.mean(float(reading.weights.mean()) for reading in again)
        print(f"  {name:18} {cost:.2f} nats a token")


def read(
    model: HookedWhisper,
    some: list[Clip],
    *,
    heads: list[tuple[int, int]] | None = None,
    text: list[str] | None = None,
) -> list[Reading]:
    """Where the decoder reads each token of some clips."""
    paths, languages = [clip.path for clip in some], [clip.language for clip in some]
    return read_tokens(model, paths, text, language=languages, heads=heads, progress=False)


def error(readings: list[Reading], heads: list[tuple[int, int]]) -> float:
    """Median over clips of how far word times by some heads are off, in seconds."""
    found = [reading.timing_error(heads) for reading in readings]
    return statistics.median(seconds for seconds in found if seconds == seconds)  # NaN: no token is read sharply


if __name__ == "__main__":
    main()
