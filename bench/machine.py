"""Where figures were measured: what must stand beside every one of them."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def facts(redis: str, encoding: str, appendfsync: str) -> dict[str, str]:
    load = os.getloadavg()
    return {
        "commit": _commit(),
        "machine": f"{_cpu()}, {os.cpu_count()} cores for all processes, load included; {_memory_gib():.1f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {redis}",
        "encoding": encoding,
        "appendfsync": appendfsync,
        "load before": " ".join(f"{value:.2f}" for value in load) + " (1, 5, 15 min)",
    }


def _commit() -> str:
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a git checkout"
    return commit + (" with uncommitted changes" if dirty.strip() else "")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
