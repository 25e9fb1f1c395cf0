"""Memory: how much MLX may take on each device, and what the system counts."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import pytest

from mlxlava.backend import limit_memory, memory, memory_budget_gb, mx, peak_memory_gb, resident_memory_gb

M1 = {"memory_size": 17_179_869_184, "max_recommended_working_set_size": 11_453_246_122}
CARD = {"total_memory": 8_000_000_000, "free_memory": 5_000_000_000}


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The limits that MLX was given, by name."""
    given: dict[str, int] = {}
    for name in ("memory", "cache", "wired"):

        def keep(limit: int, name: str = name) -> int:
            given[name] = limit
            return 0

        monkeypatch.setattr(mx, f"set_{name}_limit", keep)
    return given


def on_device(monkeypatch: pytest.MonkeyPatch, info: dict[str, Any], metal: bool) -> None:
    """As if MLX ran on a GPU that says this of itself."""
    monkeypatch.setattr(memory, "on_cpu", lambda: False)
    monkeypatch.setattr(mx, "device_info", lambda: info)
    monkeypatch.setattr(mx.metal, "is_available", lambda: metal)


def test_a_mac_keeps_two_fifths_of_its_memory_for_others(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
) -> None:
    on_device(monkeypatch, M1, metal=True)
    assert memory_budget_gb() == pytest.approx(0.6 * 17.18, rel=1e-3)
    assert limit_memory() == pytest.approx(memory_budget_gb())
    # What is kept for later has no smaller limit: each step would give it back and ask for it anew.
    assert limits["memory"] == limits["cache"] == limits["wired"] == int(memory_budget_gb() * 1e9)


def test_no_limit_is_above_what_the_device_recommends(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
) -> None:
    on_device(monkeypatch, {**M1, "max_recommended_working_set_size": 8_000_000_000}, metal=True)
    assert memory_budget_gb() == 8.0
    assert limit_memory(40.0) == 8.0
    assert set(limits.values()) == {8_000_000_000}
    assert limit_memory(2.5) == 2.5
    assert set(limits.values()) == {2_500_000_000}


def test_an_nvidia_gpu_gives_what_others_leave(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
) -> None:
    on_device(monkeypatch, CARD, metal=False)
    monkeypatch.setattr(mx, "get_active_memory", lambda: 1_000_000_000)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 500_000_000)
    assert memory_budget_gb() == pytest.approx(0.9 * 6.5)  # what is ours is not free, but ours
    assert limit_memory(40.0) == pytest.approx(0.95 * 8)
    assert "wired" not in limits


def test_a_cpu_is_not_limited(limits: dict[str, int]) -> None:
    memory_of_machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    assert memory_budget_gb() == pytest.approx(0.75 * memory_of_machine)
    assert limit_memory(3.0) == 3.0
    assert limits == {}


def test_the_layout_is_that_of_macos() -> None:
    """sys/resource.h, RUSAGE_INFO_V4: 16 bytes of a UUID and 35 numbers of 8 bytes."""
    layout = memory.RusageInfoV4
    assert ctypes.sizeof(layout) == 296
    offsets = {
        "ri_user_time": 16,
        "ri_resident_size": 64,
        "ri_phys_footprint": 72,
        "ri_proc_start_abstime": 80,
        "ri_diskio_bytesread": 144,
        "ri_cpu_time_qos_default": 160,
        "ri_logical_writes": 232,
        "ri_lifetime_max_phys_footprint": 240,
        "ri_runnable_time": 288,
    }
    assert {name: getattr(layout, name).offset for name in offsets} == offsets


class System:
    """libSystem with a ``proc_pid_rusage`` that gives 3 GB now and 5 GB at most, or fails."""

    def __init__(self, status: int) -> None:
        self.status = status

    def proc_pid_rusage(self, pid: ctypes.c_int, flavor: ctypes.c_int, buffer: Any) -> int:
        assert (pid.value, flavor.value) == (os.getpid(), 4)
        ctypes.cast(buffer, ctypes.POINTER(ctypes.c_uint64))[9] = 3_000_000_000
        ctypes.cast(buffer, ctypes.POINTER(ctypes.c_uint64))[30] = 5_000_000_000
        return self.status


def test_on_macos_it_is_what_activity_monitor_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: System(0))
    assert resident_memory_gb() == 3.0
    assert peak_memory_gb()["process"] == 5.0


@pytest.mark.parametrize("library", [lambda name: System(-1), lambda name: object()])
def test_where_macos_does_not_say_it_is_the_resident_peak(
    monkeypatch: pytest.MonkeyPatch, library: Any
) -> None:
    before = peak_memory_gb()["process"]
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", library)
    # ru_maxrss is in bytes there, in kB here.
    assert peak_memory_gb()["process"] * 1024 == pytest.approx(before, rel=0.1)


def test_resident_memory_is_not_above_its_peak() -> None:
    # Linux adds up pages now and then only, each of the two at its own times.
    assert 0 < resident_memory_gb() < 1.05 * peak_memory_gb()["process"]


def test_memory_is_counted_from_the_last_reset() -> None:
    mx.reset_peak_memory()
    array = mx.ones((1000, 1000))
    mx.eval(array)
    assert memory.peak_held_memory_gb() * 1e9 >= array.nbytes
