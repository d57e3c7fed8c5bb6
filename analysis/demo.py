"""The project's main job, end to end: `make demo`, or `hooked-whisper demo`.

Loads whisper-base, transcribes real speech in five languages, runs it with a cache, hides one word after the other from
the decoder, and writes pictures and one HTML page. `run_demo` says what it does while it does it.
"""

from __future__ import annotations

import os
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformer_lens.hook_points import HookPoint

from hooked_whisper.analysis.demo_page import LANGUAGES, DemoMaterial, Edit, Heard, write_pictures_and_page
from hooked_whisper.audio import FRAMES_PER_SECOND
from hooked_whisper.errors import ConfigError
from hooked_whisper.hook_table import format_hook_table, hook_table
from hooked_whisper.speech import clips

if TYPE_CHECKING:
    from hooked_whisper.cache import WhisperCache
    from hooked_whisper.model import HookedWhisper
    from hooked_whisper.transcription import Transcript

SENTENCE = "vm-nobodyavail"  # the one that is looked into
SENTENCES = (SENTENCE, "conf-waitforleader", "tt-weasels")
MARGIN = 0.1  # seconds hidden before and after a word


@dataclass(frozen=True)
class DemoResult:
    """What `run_demo` made: the page, the pictures, and what the model wrote."""

    page: Path
    pictures: list[Path]
    heard: list[Heard]
    edits: list[Edit]


class Console:
    """Prints steps and results; colours only on a terminal that wants them (NO_COLOR is respected)."""

    def __init__(self, steps: int) -> None:
        self.stream = sys.stdout
        self.steps, self.done = steps, 0
        self.terminal = self.stream.isatty()
        self.coloured = self.terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def paint(self, text: str, code: str) -> str:
        """`text` in a colour (an SGR code such as "1" or "33"), where there are colours."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.coloured else text

    def say(self, text: str = "") -> None:
        """One or more lines, indented under the step; a bar that is up makes room."""
        with tqdm.external_write_mode(file=self.stream):
            for line in text.split("\n"):
                print(f"      {line}".rstrip(), file=self.stream, flush=True)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """A numbered step; its time is printed at its end."""
        self.done += 1
        number = self.paint(f"[{self.done}/{self.steps}]", "1;36")
        print(f"\n{number} {self.paint(what, '1')}", file=self.stream, flush=True)
        begun = time.perf_counter()
        yield
        self.say(self.paint(f"({time.perf_counter() - begun:.1f} s)", "2"))

    def progress(self, items: list, what: str) -> Iterable:
        """`items`, with a bar while they are gone through, on a terminal."""
        return tqdm(items, desc=f"      {what}", file=self.stream, leave=False, disable=not self.terminal, unit="")


def run_demo(
    out: str | Path = "demo_output", *, model: str = "openai/whisper-base", device: str | None = None
) -> DemoResult:
    """Shows what happens inside a real Whisper on real speech, and writes pictures and a page about it.

    Args:
        out: folder for the pictures and `index.html`; made if it is not there.
        model: anything that `HookedWhisper.from_pretrained` loads; it must be multilingual.
        device: None takes the best there is.

    Raises:
        ConfigError: `out` is a file. CheckpointError: no such model. AudioError: not run from a clone of the
            repository, which has the speech.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"The output {str(folder)!r} is a file: expected a folder, or a name that is free.")
    console = Console(steps=6)
    console.say("hooked-whisper: what happens inside a real Whisper on real speech")
    with console.step(f"Loading {model}"):
        loaded = load(model, device, console)
    with console.step(f"Transcribing {len(SENTENCES)} sentences, each said in {len(LANGUAGES)} languages"):
        heard = transcribe(loaded, console)
    looked_into = [said for said in heard if said.clip.key == SENTENCE]
    english = looked_into[0]
    with console.step("The hook table: every activation has a name"):
        rows = hook_table(loaded)
        console.say(format_hook_table(rows))
        count = len(loaded.hook_names())
        console.say(f"\n{count} hook points are on, {len(loaded.hook_dict) - count} more can be switched on")
    with console.step(f"run_with_cache: everything that happens in {english.text!r}"):
        _, cache = loaded.run_with_cache(english.clip.path, english.text, language=english.clip.language)
        console.say(cache.summary())
    with console.step(f"Hiding a word's sound from the decoder, {MARGIN} s more on each side, while it writes"):
        edits = hide_words(loaded, cache, english, console)
    with console.step(f"Drawing pictures and the page into {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        caches = [cache, *(look(loaded, said) for said in looked_into[1:])]
        material = DemoMaterial(heard, list(zip(looked_into, caches, strict=True)), edits, rows)
        page, pictures = write_pictures_and_page(loaded, material, folder, console.say)
        console.say(f"{page} ({page.stat().st_size / 1e6:.1f} MB, works offline)")
    console.say()
    console.say(f"Open {console.paint(str(page.resolve()), '1;32')} in a browser: sound, words, pictures, tables")
    return DemoResult(page, pictures, heard, edits)


def load(name: str, device: str | None, console: Console) -> HookedWhisper:
    """The model, with a line on what it is and where the weights come from."""
    from hooked_whisper.model import HookedWhisper

    model = HookedWhisper.from_pretrained(name, device=device)
    n_parameters = sum(p.numel() for p in model.parameters())
    console.say(model.source)
    console.say(
        f"{n_parameters / 1e6:.1f} million parameters: {model.cfg.encoder.n_layers} encoder and "
        f"{model.cfg.decoder.n_layers} decoder layers, width {model.cfg.d_model}; "
        f"{str(model.dtype).removeprefix('torch.')} on {model.device}, {torch.get_num_threads()} thread(s)"
    )
    return model


def transcribe(model: HookedWhisper, console: Console) -> list[Heard]:
    """What the model writes for each sentence in each language, printed beside the published text."""
    heard = []
    for language in console.progress(list(LANGUAGES), "language"):
        chosen = [clip for key in SENTENCES for clip in clips(language, key)]
        for clip, transcript in zip(chosen, transcripts(model, [c.path for c in chosen], language), strict=True):
            heard.append(Heard(clip, transcript.text))
            _print_heard(heard[-1], console)
    console.say("= the words of the published text; ≠ not quite (the published texts have errors of their own)")
    return heard


def transcripts(model: HookedWhisper, paths: list[Path], language: str) -> list[Transcript]:
    """The transcripts of several clips, decoded together."""
    found = model.transcribe(paths, language=language)
    assert isinstance(found, list)
    return found


def _print_heard(heard: Heard, console: Console) -> None:
    same = _plain(heard.text) == _plain(heard.clip.text)
    console.say(f"{heard.clip.language} {console.paint('=', '32') if same else console.paint('≠', '33')} {heard.text}")
    if not same:
        console.say(console.paint(f"     {heard.clip.text}  (published)", "2"))


def _plain(text: str) -> list[str]:
    """Words without case, accents and punctuation, for a fair comparison."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    return re.findall(r"\w+", bare)


# An edit


def hide_words(model: HookedWhisper, cache: WhisperCache, heard: Heard, console: Console) -> list[Edit]:
    """Hides the sound of one word at a time from cross-attention, and lets the model write.

    From 0.1 s before the word to 0.1 s after it, the pattern is set to zero in every head of every decoder layer, and
    the rest scaled back to a sum of one. The encoder still hears everything; only what the decoder can read is changed.
    """
    words = [word for word in cache.words() if len(word.text.strip(" .,")) > 3]
    spans = [(max(word.start - MARGIN, 0.0), word.end + MARGIN) for word in words]

    def hide(pattern: Float[Tensor, "batch head pos frame"], hook: HookPoint) -> Float[Tensor, "batch head pos frame"]:
        pattern = pattern.clone()
        for row, (start, end) in zip(pattern, spans, strict=True):  # one clip of the batch for each hidden word
            row[..., round(start * FRAMES_PER_SECOND) : round(end * FRAMES_PER_SECOND)] = 0
        return pattern / pattern.sum(-1, keepdim=True)

    clip = heard.clip
    with model.hooks(fwd_hooks=[("decoder.blocks.*.cross_attn.hook_pattern", hide)]):
        texts = [t.text for t in transcripts(model, [clip.path] * len(spans), clip.language)]
    edits = [Edit("nothing", heard.text)]
    for word, (start, end), text in zip(words, spans, texts, strict=True):
        edits.append(Edit(f"{word.text.strip(' .,')} ({start:.2f} to {end:.2f} s)", text))
    width = max(len(edit.what) for edit in edits)
    for edit in edits:
        console.say(f"{console.paint(f'{edit.what:<{width}}', '2')}  {edit.text}")
    return edits


def look(model: HookedWhisper, heard: Heard) -> WhisperCache:
    """A cache with no more in it than the picture of a clip needs."""
    names = ["hook_mel", "decoder.blocks.*.cross_attn.hook_q", "decoder.blocks.*.cross_attn.hook_k"]
    _, cache = model.run_with_cache(heard.clip.path, heard.text, language=heard.clip.language, names_filter=names)
    return cache
