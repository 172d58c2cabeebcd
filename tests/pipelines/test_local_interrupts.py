"""A run that is interrupted says so, whenever the signal comes."""

from __future__ import annotations

import os
import signal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components.shared.files import write_json
from pipelines import local
from pipelines.settings import load_run_settings


@pytest.mark.parametrize(
    ("moment", "said"), [("step", "Run the same command again"), ("report", "every step had ended")]
)
def test_a_signal_is_told_also_when_it_comes_while_the_report_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, said: str
) -> None:
    def execute(*_: Any) -> bool:
        if moment == "step":
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    def write_report(_settings: Any, run: Any, *_: Any) -> None:
        if moment == "report":
            os.kill(os.getpid(), signal.SIGTERM)
        write_json(run.summary, {})

    for name, double in {"_execute": execute, "_write_report": write_report, "_task_names": lambda _: {}}.items():
        monkeypatch.setattr(local, name, double)
    shown = StringIO()
    settings = load_run_settings("demo").executed(workspace=str(tmp_path), profile="local")
    with pytest.raises(SystemExit) as ended:
        local.run_local(settings, None, {}, name="small", console=Console(file=shown, width=200))
    assert ended.value.code == 128 + signal.SIGTERM
    assert said in shown.getvalue()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
