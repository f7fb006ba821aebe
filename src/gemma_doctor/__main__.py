"""``python -m gemma_doctor``, and ``gemma-doctor``: the first thing that runs, and the last."""

from __future__ import annotations

import sys

__all__ = ["main"]

_COULD_NOT_TELL = 2
_INTERRUPTED = 130  # what a shell makes of SIGINT


def main() -> None:
    """Run the command line; who presses Ctrl-C while it is being loaded, or while it leaves, sees no traceback.

    What cannot be loaded must not look like a finding either: Python itself would exit with 1.
    """
    try:
        from gemma_doctor.cli import main as run  # noqa: PLC0415  # inside the try: loading takes a tenth of a second

        run()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except Exception as error:  # noqa: BLE001  # whatever loading raised; once loaded, the command line lets none through
        if isinstance(error.__cause__, KeyboardInterrupt):  # so does Python before 3.12 report it out of __set_name__
            sys.exit(_INTERRUPTED)
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(_COULD_NOT_TELL)


if __name__ == "__main__":
    main()
