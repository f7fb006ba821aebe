"""Peak anonymous memory of a scan in a process of its own: ``python benchmarks/memory.py CHECKPOINT``."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

import gemma_doctor


def _anonymous() -> int:
    """Bytes of anonymous memory that are resident (Linux)."""
    match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(match[1]) if match else 0


def main() -> None:
    """Print the peak in bytes, sampled every 5 ms."""
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    gemma_doctor.scan(sys.argv[1])
    done.set()
    watcher.join()
    print(peak)


if __name__ == "__main__":
    main()
