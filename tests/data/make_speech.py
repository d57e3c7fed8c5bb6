"""Makes tests/data/speech from Debian's Asterisk prompts. For maintainers; tests use what is committed.

    python tests/data/make_speech.py                      # fetches with apt-get download, needs Debian or Ubuntu
    python tests/data/make_speech.py --unpacked DIR       # packages already unpacked there with dpkg-deb -x
    python tests/data/make_speech.py --check              # writes nothing; the committed clips must come out again

The clips are the packages' own bytes (G.722, 16 kHz mono, 64 kbit/s), never decoded or encoded again. The keys were
chosen by hand for being whole sentences of 1.7 to 7 seconds in all five languages, before any model heard them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

from hooked_whisper.saes.prompts import BYTES_PER_SECOND, VOICES, package_names, sound_file, transcripts, unpack

SPEECH = Path(__file__).parent / "speech"
KEYS = [
    "auth-incorrect",
    "conf-onlyperson",
    "conf-waitforleader",
    "conf-leaderhasleft",
    "confbridge-lock-no-join",
    "demo-nomatch",
    "dir-nomatch",
    "followme/sorry",
    "pbx-invalidpark",
    "priv-introsaved",
    "privacy-prompt",
    "privacy-unident",
    "queue-youarenext",
    "tt-weasels",
    "vm-nobodyavail",
    "vm-nonumber",
    "vm-savefolder",
    "vm-sorry",
    "vm-tmpexists",
    "vm-whichbox",
]


def build(unpacked: Path) -> tuple[dict[str, bytes], str]:
    """The clips by their path in the speech folder, and the manifest's text."""
    clips: dict[str, bytes] = {}
    rows = []
    for language, voice in VOICES.items():
        texts = transcripts(unpacked, language)
        for key in sorted(KEYS):
            path = f"{language}/{key.replace('/', '-')}.g722"
            clips[path] = sound_file(unpacked, language, key).read_bytes()
            rows.append(
                {
                    "key": key,
                    "language": language,
                    "text": texts[key],
                    "speaker": voice.speaker,
                    "path": path,
                    "seconds": len(clips[path]) / BYTES_PER_SECOND,
                    "sha256": hashlib.sha256(clips[path]).hexdigest(),
                }
            )
    return clips, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes tests/data/speech from Debian's packages.")
    parser.add_argument("--unpacked", type=Path, help="where the packages are unpacked already")
    parser.add_argument("--check", action="store_true", help="compare with the committed clips, write nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if options.unpacked is None:
            unpack(Path(temporary), package_names(music=False))
        clips, manifest = build(options.unpacked or Path(temporary))
    files = {**clips, "manifest.jsonl": manifest.encode()}
    if options.check:
        wrong = [p for p, data in files.items() if not (SPEECH / p).is_file() or (SPEECH / p).read_bytes() != data]
        print(f"{len(files) - len(wrong)} files as committed, {len(wrong)} not: {', '.join(wrong) or '-'}")
        return 1 if wrong else 0
    for path, data in files.items():
        (SPEECH / path).parent.mkdir(parents=True, exist_ok=True)
        (SPEECH / path).write_bytes(data)
    print(f"{len(clips)} clips, {sum(map(len, clips.values())) / 1e6:.2f} MB, in {SPEECH}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
