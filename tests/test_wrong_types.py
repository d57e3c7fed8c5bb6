"""What a user passes by mistake, of a type that no signature has: one clear message each.

Types are checked in every other test, before the code sees an argument. Users have no such check, so this runs in a
process of its own that has none either.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_each_is_refused_with_a_message_of_its_own(root: Path) -> None:
    command = [sys.executable, "-c", CASES, str(root / "tests")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "28 cases\n"
