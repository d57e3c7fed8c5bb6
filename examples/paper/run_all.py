"""The paper's claims from nothing to one report: every study here, one after the other, each cached in its folder.

python examples/paper/run_all.py --work paper                    # the full studies: a day of two cores
python examples/paper/run_all.py --work paper --short            # a few words and sentences of each: half an hour
python examples/paper/run_all.py --work paper --list             # what would be run

A step that has a report is not run again; one that was killed goes on where it was. `paper/report.md` has the reports
of all steps, one after the other.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LANGUAGES = ["en", "es", "fr", "it"]
PHONE_SAES = ["3n/4096/64/4000/matryoshka/rows/from256", "3n/2048/48/4000/matryoshka/rows/from192",
              "3n/1024/32/6000/matryoshka/rows/from128"]  # fmt: skip
# step -> options of the full study and of the short one, beside --work; "{prompts}" is the folder of the prompts,
# "{phone_layers}" that of that study
# fmt: off
STEPS: dict[str, tuple[list[str], list[str]]] = {
    "phones": (
        ["--prompts", "{prompts}", "--sentences", "40", "--languages", *LANGUAGES],
        ["--sentences", "4", "--languages", "en", "es", "--voices", "2", "--min-rows", "4"],
    ),
    "phone_layers": (
        ["--prompts", "{prompts}", "--sentences", "411", "--languages", *LANGUAGES, "ru", "--heard", "en",
         "--voices", "52", "--layers", "3n", "out", "--test-all", "--configs", "+".join(PHONE_SAES), *PHONE_SAES,
         "3n/8192/16/2500/rows/from128"],
        ["--voices", "2", "--layers", "3", "out", "--batch", "256"],
    ),
    "real_phones": (
        ["--study", "{phone_layers}", "--prompts", "{prompts}", "--languages", *LANGUAGES, "ru"],
        ["--study", "{phone_layers}", "--unlearnt", "anywhere", "--confidence", "0"],
    ),
    "classes": ([], ["--designs", "lexical", "--every", "lexical=12", "--voices", "1", "1"]),
    "steering": (
        ["--prompts", "{prompts}", "--sentences", "40", "--clips", "20", "--swaps", "p:k", "m:n", "f:s", "t:k"],
        ["--languages", "en", "it"],
    ),
    "non_speech": (["--prompts", "{prompts}"], ["--each", "1", "--clips", "4", "--doses", "2.4"]),
}
# fmt: on


def commands(work: Path, short: bool) -> dict[str, list[str]]:
    """The command of each step, in order."""
    prompts = work / "prompts"
    found = {} if short else {"prompts": [sys.executable, "-m", "hooked_whisper.cli", "prompts", str(prompts)]}
    for name, options in STEPS.items():
        own = [part.format(prompts=prompts, phone_layers=work / "phone_layers") for part in options[int(short)]]
        found[name] = [sys.executable, str(HERE / f"{name}.py"), "--work", str(work / name), *own]
    return found


def is_done(name: str, work: Path) -> bool:
    """Whether a step has left what it makes."""
    return (work / "prompts" / "manifest.jsonl" if name == "prompts" else work / name / "report.md").is_file()


def main() -> None:
    """Runs what has no report yet, and puts the reports together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--short", action="store_true", help="a little of each, which shows no more than that it runs")
    parser.add_argument("--list", action="store_true", help="say what would be run")
    options = parser.parse_args()
    for name, command in commands(options.work, options.short).items():
        done = is_done(name, options.work)
        print(f"{name}: {'done' if done else shlex.join(command)}", flush=True)
        if not (options.list or done):
            options.work.mkdir(parents=True, exist_ok=True)
            subprocess.run(command, check=True)
    reports = [options.work / name / "report.md" for name in STEPS]
    there = [path.read_text(encoding="utf-8") for path in reports if path.is_file()]
    if there:
        (options.work / "report.md").write_text("\n".join(there), encoding="utf-8")
        print(f"Written: {options.work / 'report.md'}, of {len(there)} of {len(reports)} studies")


if __name__ == "__main__":
    main()
