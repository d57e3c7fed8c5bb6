"""CSV, console, TensorBoard and wandb; the last two by stand-ins, since neither is installed for the tests."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from hooked_whisper.errors import MissingExtraError, SaeError
from hooked_whisper.saes.training_files import RunFolder
from hooked_whisper.saes.training_log import ConsoleLog, CsvLog, RunLogs, check_log, line

VALUES = {"loss": 2.0, "fvu": 0.25, "l0": 4.0, "dead": 0.125}


def test_csv_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log = CsvLog(path, ["loss", "fvu"], after_step=0)
    for step in (10, 20, 30):
        log.write(step, {"loss": step / 3})
    log.close()
    again = CsvLog(path, ["loss", "fvu"], after_step=20)
    again.write(30, {"loss": 1.0, "fvu": 0.5, "unknown": 1.0})
    again.close()
    assert path.read_text().splitlines() == ["step,loss,fvu", "10,3.333333,", "20,6.666667,", "30,1,0.5"]
    CsvLog(path, ["loss"], after_step=0).close()
    assert path.read_text().splitlines() == ["step,loss"]


def test_a_line_says_what_matters() -> None:
    assert line(VALUES) == "loss 2, FVU 0.250, L0 4.0, dead 12.5%"
    assert line({**VALUES, "held_out_fvu": 0.5, "held_out_l0": 3.5}) == "loss 2, FVU 0.500, L0 3.5, dead 12.5%"


def test_console_prints_evaluations_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = ConsoleLog(1000, 0, bar=False)
    console.advance(100)
    console.show("a", 10, VALUES)
    assert capsys.readouterr().err == ""
    console.show("a", 20, {"held_out_fvu": 0.5, "held_out_l0": 3.5})
    assert capsys.readouterr().err == "step 20 a loss 2, FVU 0.500, L0 3.5, dead 12.5%\n"
    console.close()


def test_console_bar(capsys: pytest.CaptureFixture[str]) -> None:
    console = ConsoleLog(1000, 200, bar=True)
    console.show("a", 10, VALUES)
    console.show("b", 10, {**VALUES, "fvu": 0.75})
    console.advance(800)
    console.close()
    shown = capsys.readouterr().err
    assert "100%" in shown and "FVU 0.250" in shown and "| loss 2, FVU 0.750" in shown and "rows/s" in shown


class Recorder:
    """Stands for a SummaryWriter and for a wandb run."""

    def __init__(self, *where: Any, **options: Any) -> None:
        self.made = (where, options)
        self.written: list[Any] = []
        self.closed = False

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.written.append((name, value, step))

    def log(self, values: dict[str, float], *, step: int) -> None:
        self.written.append((values, step))

    def close(self) -> None:
        self.closed = True

    finish = close


def test_tensorboard_and_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Recorder] = []

    def record(*where: Any, **options: Any) -> Recorder:
        made.append(Recorder(*where, **options))
        return made[-1]

    tensorboard, wandb = types.ModuleType("torch.utils.tensorboard"), types.ModuleType("wandb")
    tensorboard.SummaryWriter = record
    wandb.init = record
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    asked = check_log(["tensorboard", "wandb"])
    for _ in range(2):
        logs = RunLogs(RunFolder(tmp_path), "a", {"settings": {"k": 4}}, asked, after_step=0, console=None)
        logs.write(10, VALUES)
        logs.close()
    board, run, _, again = made
    assert board.made[0] == (str(tmp_path / "tensorboard"),) and ("loss", 2.0, 10) in board.written
    assert run.written == [(VALUES, 10)] and run.closed and board.closed
    assert run.made[1]["config"] == {"settings": {"k": 4}} and run.made[1]["resume"] == "allow"
    assert run.made[1]["id"] == again.made[1]["id"]  # the same run goes on there, too
    assert (tmp_path / "log.csv").read_text().startswith("step,loss,fvu,l0,dead,held_out_fvu")


def test_logs_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_log("console") == ("console",)
    with pytest.raises(SaeError, match="Unknown log 'consol': expected console, tensorboard, wandb, nothing"):
        check_log("consol")
    for module, package in (("torch.utils.tensorboard", "tensorboard"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=f"pip install {package}"):
            check_log(package)
