"""Facts about the host: its processor, cores and memory, and the versions of installed packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform


def version_of(*distributions: str) -> str | None:
    """Version of the first of these distributions that is installed."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def cpu_name() -> str:
    """The processor's model name, or the architecture where the system does not report one."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """The number of logical cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _proc_bytes(path: str, field: str) -> int | None:
    """The bytes that a file of /proc reports under `field`, or None where it reports none."""
    try:
        with open(path, encoding="utf-8") as lines:
            fields = dict(line.split(":", 1) for line in lines)
    except OSError:
        return None
    return int(fields[field].split()[0]) * 1024 if field in fields else None


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, or None where the system does not report them."""
    return _proc_bytes("/proc/meminfo", "MemAvailable")


def total_memory() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def resident_memory() -> int | None:
    """Bytes of this process in main memory, or None where the system does not report them."""
    return _proc_bytes("/proc/self/status", "VmRSS")


def peak_resident_memory() -> int | None:
    """The largest `resident_memory` so far, or None where the system does not report it."""
    return _proc_bytes("/proc/self/status", "VmHWM")
