"""Peaks of memory are those of their stage, and of the stages around it."""

import pytest

from mechsafety.execution.memory import Peaks, forget_peak, peak_gib

HELD = 300 * 2**20


def test_a_peak_is_forgotten_and_the_next_is_its_own() -> None:
    forget_peak()
    before = peak_gib()
    held = bytearray(HELD)
    assert peak_gib() - before == pytest.approx(HELD / 2**30, rel=0.1)
    del held
    forget_peak()
    assert peak_gib() < before + HELD / 2**30 / 2


def test_an_outer_stage_holds_what_its_inner_ones_held() -> None:
    peaks = Peaks()
    peaks.begin()
    peaks.begin()
    held = bytearray(HELD)
    del held
    inner = peaks.end()
    peaks.begin()
    after = peaks.end()
    outer = peaks.end()
    assert inner > after + HELD / 2**30 / 2
    assert outer == inner


def test_what_a_worker_held_counts() -> None:
    peaks = Peaks()
    peaks.begin()
    peaks.see(1000.0)
    assert peaks.end() == 1000.0
