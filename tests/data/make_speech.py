"""Makes tests/data/speech from Debian's Asterisk prompts. For maintainers; tests use what is committed.

    python tests/data/make_speech.py                      # fetches with apt-get download, needs Debian or Ubuntu
    python tests/data/make_speech.py --unpacked DIR       # packages already unpacked there with dpkg-deb -x
    python tests/data/make_speech.py --check              # writes nothing; the committed clips must come out again

The clips are the packages' own bytes (G.722, 16 kHz mono, 64 kbit/s), never decoded or encoded again. The keys were
chosen by hand for being whole sentences of 1.7 to 7 seconds in all five languages, before any model heard them.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SPEECH = Path(__file__).parent / "speech"
BYTES_PER_SECOND = 8_000  # G.722 at 64 kbit/s
PACKAGES = "asterisk-core-sounds-{language}", "asterisk-core-sounds-{language}-g722"  # transcripts, sound

VOICES = {  # language -> (folder of the package, speaker)
    "en": ("en_US_f_Allison", "Allison Smith"),
    "es": ("es_MX_f_Allison", "Allison Smith"),
    "fr": ("fr_CA_f_June", "June Wallack"),
    "it": ("it_IT_m_Carlo", "Carlo Flora"),
    "ru": ("ru_RU_f_IvrvoiceRU", "IvrvoiceRU"),
}
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


def fetch(folder: Path) -> None:
    """Downloads and unpacks the ten packages into `folder`, installing nothing."""
    names = [package.format(language=language) for language in VOICES for package in PACKAGES]
    subprocess.run(["apt-get", "download", *names], cwd=folder, check=True)
    for deb in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", deb.name, "."], cwd=folder, check=True)


def transcripts(unpacked: Path, language: str) -> dict[str, str]:
    """The published text of every prompt, spaces made single, otherwise as it is (typing errors included)."""
    name = PACKAGES[0].format(language=language)
    path = unpacked / "usr/share/doc" / name / f"core-sounds-{language}.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8-sig").splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line and not line.startswith(";"))
    return {key.strip(): " ".join(text.split()) for key, text in pairs}


def build(unpacked: Path) -> tuple[dict[str, bytes], str]:
    """The clips by their path in the speech folder, and the manifest's text."""
    clips: dict[str, bytes] = {}
    rows = []
    for language, (folder, speaker) in VOICES.items():
        texts = transcripts(unpacked, language)
        for key in sorted(KEYS):
            path = f"{language}/{key.replace('/', '-')}.g722"
            clips[path] = (unpacked / "usr/share/asterisk/sounds" / folder / f"{key}.g722").read_bytes()
            rows.append(
                {
                    "key": key,
                    "language": language,
                    "text": texts[key],
                    "speaker": speaker,
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
            fetch(Path(temporary))
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
