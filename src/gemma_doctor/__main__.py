"""``python -m gemma_doctor``, and ``gemma-doctor``: the first thing that runs, and the last."""

from __future__ import annotations

import sys

__all__ = ["main"]

_INTERRUPTED = 130  # what a shell makes of SIGINT


def main() -> None:
    """Run the command line; who presses Ctrl-C while it is being loaded, or while it leaves, sees no traceback."""
    try:
        from gemma_doctor.cli import main as run  # noqa: PLC0415  # inside the try: loading takes a tenth of a second

        run()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
