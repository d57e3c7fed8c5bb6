"""Where the course of a training run is written: a CSV file always, and by choice the console, TensorBoard, wandb."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from tqdm import tqdm

from hooked_whisper.errors import MissingExtraError, SaeError
from hooked_whisper.saes.training_files import RunFolder

LogTo = Literal["console", "tensorboard", "wandb", "nothing"]
LOGS = ("console", "tensorboard", "wandb", "nothing")
HELD_OUT = ("held_out_fvu", "held_out_l0", "held_out_silent")


class Log(Protocol):
    """Takes the values of a step by name, and is closed at the end."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class CsvLog:
    """One line for each step that something is known of; columns as of the first line, empty where nothing is known.

    Going on after a kill, the lines after the checkpoint are dropped: they come again.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, after_step: int) -> None:
        self._columns = ["step", *columns]
        kept: list[dict[str, str]] = []
        if path.exists() and after_step > 0:
            with open(path, newline="", encoding="utf-8") as file:
                kept = [row for row in csv.DictReader(file) if _is_at_most(row.get("step"), after_step)]
        partial = path.with_name(path.name + ".partial")
        with open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        os.replace(partial, path)
        self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._writer = csv.DictWriter(self._file, self._columns, extrasaction="ignore")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._writer.writerow({"step": step, **{name: f"{value:.7g}" for name, value in values.items()}})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _is_at_most(step: str | None, most: int) -> bool:
    return step is not None and step.isdecimal() and int(step) <= most


class ConsoleLog:
    """A bar with loss, FVU, L0, dead latents, rows a second, time left; without a terminal, a line each evaluation."""

    def __init__(self, n_rows: int, done: int, *, bar: bool | None = None) -> None:
        self.latest: dict[str, dict[str, float]] = {}
        show = sys.stderr.isatty() if bar is None else bar
        self._bar = tqdm(total=n_rows, initial=done, unit=" rows", unit_scale=True, disable=not show, desc="training")

    def advance(self, n_rows: int) -> None:
        """Counts rows."""
        self._bar.update(n_rows)

    def show(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Shows the values of SAE `name`."""
        self.latest.setdefault(name, {}).update(values)
        if self._bar.disable:
            if "held_out_fvu" in values:
                print(f"step {step:,} {name} {line(self.latest[name])}", file=sys.stderr, flush=True)
            return
        self._bar.set_postfix_str(" | ".join(line(known) for known in self.latest.values()), refresh=False)

    def close(self) -> None:
        self._bar.close()


def line(values: Mapping[str, float]) -> str:
    """The figures of a step, in a few words."""
    fvu = values.get("held_out_fvu", values.get("fvu", math.nan))
    parts = [f"loss {values.get('loss', math.nan):.3g}", f"FVU {fvu:.3f}"]
    parts.append(f"L0 {values.get('held_out_l0', values.get('l0', math.nan)):.1f}")
    parts.append(f"dead {values.get('dead', math.nan):.1%}")
    return ", ".join(parts)


class TensorBoardLog:
    """Event files in the run's folder; `tensorboard --logdir runs` shows them."""

    def __init__(self, folder: Path) -> None:
        module = _optional("torch.utils.tensorboard", "TensorBoard", "tensorboard")
        self._writer = module.SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbLog:
    """A wandb run; project, mode and the like come from wandb's own environment variables, such as WANDB_PROJECT."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        wandb = _optional("wandb", "Weights & Biases", "wandb")
        # The same for the same settings in the same folder, so that a run that goes on is one run there, too.
        run_id = hashlib.sha256(json.dumps([str(folder.resolve()), config], sort_keys=True).encode()).hexdigest()[:16]
        self._run = wandb.init(id=run_id, resume="allow", name=folder.name, dir=str(folder), config=dict(config))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _optional(module: str, what: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"Logging to {what} needs a package that is not installed: pip install {package}."
        ) from error


def check_log(log: str | Sequence[str]) -> tuple[str, ...]:
    """The logs asked for.

    Raises:
        SaeError: one that there is not. MissingExtraError: its package is not installed.
    """
    asked = (log,) if isinstance(log, str) else tuple(log)
    for name in asked:
        if name not in LOGS:
            raise SaeError(
                f"Unknown log {name!r}: expected {', '.join(LOGS)}, or several of them; a CSV is always written."
            )
    if "tensorboard" in asked:
        _optional("torch.utils.tensorboard", "TensorBoard", "tensorboard")
    if "wandb" in asked:
        _optional("wandb", "Weights & Biases", "wandb")
    return asked


class RunLogs:
    """All logs of one SAE's run."""

    def __init__(
        self, folder: RunFolder, name: str, config: Mapping[str, Any], logs: Sequence[str], *, after_step: int,
        console: ConsoleLog | None,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._name = name
        self._after_step = after_step
        self._console = console
        self._csv: CsvLog | None = None
        self._others: list[Log] = []
        if "tensorboard" in logs:
            self._others.append(TensorBoardLog(folder.path))
        if "wandb" in logs:
            self._others.append(WandbLog(folder.path, config))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes what is known of a step."""
        if self._csv is None:  # now the names of the losses are known
            self._csv = CsvLog(self._folder.log, list(dict.fromkeys([*values, *HELD_OUT])), after_step=self._after_step)
        self._csv.write(step, values)
        for log in self._others:
            log.write(step, values)
        if self._console is not None:
            self._console.show(self._name, step, values)

    def close(self) -> None:
        """Closes all of them."""
        for log in [*self._others, *([] if self._csv is None else [self._csv])]:
            log.close()
