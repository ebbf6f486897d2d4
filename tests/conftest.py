"""For all tests: the scripts can be imported, and what is written goes below a folder of the test's own."""

import signal
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
torch.set_num_threads(1)


def pytest_configure(config):
    for warning in (".*is out of date:DeprecationWarning", ".*settotalmass:UserWarning"):  # Gymnasium's v4, HalfCheetah
        config.addinivalue_line("filterwarnings", f"ignore:{warning}")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs go below the current directory, and so does MuJoCo's log; nothing is compiled unless a test says so."""
    monkeypatch.chdir(tmp_path)
    torch.compiler.set_stance("force_eager")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():  # a script's main has set them
        signal.signal(number, handler)


@pytest.fixture
def quiet(monkeypatch):
    """A run that is finished draws and prints nothing."""
    import baselines

    monkeypatch.setattr(baselines.SavedRun, "draw", lambda run: None)
    monkeypatch.setattr(baselines, "print_table", lambda rows: None)
