"""Budgets of design.md section 8 that concern selecting a direction."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_selection_beats_the_published_procedure_with_the_same_numbers() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.measure_selection"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same_winner"], found
    assert max(found["off"].values()) <= 1e-5, found
    assert found["exhaustive_speedup"] >= 3, found
    assert found["winner_speedup"] >= 6, found
