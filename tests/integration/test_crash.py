"""kill -9 under load, a few times; tests/crash/run makes a campaign of it."""
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).resolve().parents[1] / "crash" / "run"


@pytest.mark.parametrize("flags", [["--cycles", "5"], ["--tiers", "--cycles", "4"]], ids=["load", "tiers"])
def test_kill_9_costs_nothing_that_was_flushed_and_no_true_byte(tmp_path, flags):
    # It bounds itself, and never touches the mount: waiting for it cannot hang.
    result = subprocess.run([sys.executable, str(CAMPAIGN), *flags, "--work", str(tmp_path / "crash")],
                            capture_output=True, text=True, timeout=3600)
    assert result.returncode == 0, result.stdout + result.stderr
