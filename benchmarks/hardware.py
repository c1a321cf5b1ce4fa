"""What a benchmark ran on: names and versions for its report."""

from __future__ import annotations

import importlib.metadata
import os
import platform


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def describe(*packages: str) -> dict:
    """Processor, cores of this process, load, and the versions of Python and of `packages`.

    A package that is not installed has version None.
    """
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "load_average": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in packages},
        },
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def line(described: dict) -> str:
    """`describe` in one line."""
    versions = (f"{name} {version}" for name, version in described["versions"].items() if version)
    return (
        f"{described['cpu']}, {described['cores']} cores, load average "
        f"{described['load_average']:.1f}; {', '.join(versions)}"
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
