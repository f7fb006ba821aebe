"""The recorder in C++: on a GPU a step's operations take less time than Python needs to look at them.

``recorder.cpp`` is compiled when it is first wanted, with the headers that torch brings and the compiler of the
machine, and kept in the user's cache. Without a compiler the trace runs in Python, with the same result but where torch
itself runs something else for a dispatch mode: ``scatter`` for ``scatter_``, or no shortcut that looks at the numbers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gemma_doctor.kernels import outputs
from gemma_doctor.kernels.devices import watched
from gemma_doctor.verify.events import Events, Log, Origin, Spot
from gemma_doctor.verify.operations import operation
from gemma_doctor.verify.places import Places
from gemma_doctor.verify.recording import BATCH

__all__ = ["NativeTrace", "building"]

_SOURCE = Path(__file__).with_name("recorder.cpp")

_NAME = "recorder"

_UNKNOWN = -1
"""Origins from here on are steps; this is one that nobody measured, and those below are parameters."""

_PATIENCE = 300.0
"""Seconds after which a compiler is given up."""

_entered = Lock()
"""Held by the trace that is entered."""


class NativeTrace:
    """A trace as :class:`.tracing.Trace` is one, for models whose weights all have memory and answer to nothing.

    Args:
        module: What :func:`building` gave.
        places: The places of the model that runs.
        waiting: Bytes of outputs that may wait to be measured; they cannot be freed meanwhile.
    """

    def __init__(self, module: Any, places: Places, waiting: int) -> None:  # noqa: ANN401  # compiled
        self._module = module
        self._places = places
        self._launched: list[_Measured] = []
        device = places.owners[0][0].device if places.owners else torch.device("cpu")
        known = places.storages, places.owners, list(places.names.values()), places.running
        told = partial(_learn, device.type.upper()), *_measuring(self._launched)
        self._recorder = module.Recorder(*known, BATCH, waiting, *told, list(outputs.in_place_dtypes(device)), device)
        self._around = ExitStack()

    def __enter__(self) -> NativeTrace:  # noqa: PYI034  # Self needs Python 3.11
        """Begin to record.

        Raises:
            RuntimeError: If another one is entered: there is one at a time in a process.
        """
        with ExitStack() as around:
            if not _entered.acquire(blocking=False):
                raise RuntimeError("another model is being traced in this process: one at a time")
            around.callback(_entered.release)
            around.enter_context(torch.compiler.set_stance("force_eager"))  # what is compiled calls no operators
            around.enter_context(watched())
            around.callback(self._module.Observing(self._recorder).end)
            self._around = around.pop_all()
        return self

    def __exit__(self, kind: object, *_raised: object) -> None:
        """Stop, and raise what has failed meanwhile, unless something else was raised."""
        self._around.close()
        if kind is None:
            self._recorder.flush()

    def events(self) -> Events:
        """Everything that was recorded so far."""
        self._recorder.flush()
        measured = sorted(self._launched, key=lambda item: item[0])
        starts, launched = tuple(start for start, _ in measured), tuple(one for _, one in measured)
        return Events(partial(_log, self._recorder.columns()), self._places.marks.found, launched, starts)


_Measured: TypeAlias = "tuple[int, outputs.Launched]"
"""The first step of a batch, and its measurement."""


def _measuring(launched: list[_Measured]) -> tuple[Callable[..., None], Callable[..., None]]:
    """What C++ calls to have a batch measured: by its tensors, or by where these lie.

    No methods: Python's garbage collector sees no circle that goes through C++, and would never free the model.
    """

    def measure(start: int, tensors: list[Tensor]) -> None:
        launched.append((start, outputs.launch(tensors)))

    def scan(start: int, where: Tensor, device: torch.device) -> None:
        launched.append((start, outputs.launch_in_place(where.numpy(), device)))

    return measure, scan


def _learn(device: str, name: str, overload: str) -> tuple[Any, ...]:
    """What C++ has to know of an operation on a device: the fields of its ``Operation``."""
    space, _, packet = name.partition("::")
    found = getattr(getattr(getattr(torch.ops, space), packet), overload or "default")
    known, schema = operation(found), found._schema  # noqa: SLF001  # torch's own modes read it too
    written = [place for place, _ in known.written]
    keys = torch._C.DispatchKey  # noqa: SLF001  # no public name tells it
    here, composition, autocast = (
        found.has_kernel_for_dispatch_key(getattr(keys, key))
        for key in (device, "CompositeImplicitAutograd", f"Autocast{device}")
    )
    sizes = len(schema.arguments), len(schema.returns)
    shows = known.silent and any("Tensor" in str(value.type) for value in schema.returns)
    kinds = known.initialises, shows, known.numbers, composition and not here, autocast
    return known.name, sorted(known.made), sorted(known.besides), written, *sizes, *kinds


def _log(columns: dict[str, Any]) -> Log:
    """What C++ noted, with names for its numbers."""
    names, parameters, modules = columns["names"], columns["parameters"], columns["modules"]
    kinds = [(dtype, torch.Size(shape)) for dtype, shape in columns["kinds_met"]]
    places = [(phase, module) for module in modules for phase in ("forward", "backward")]
    spots: list[Spot] = [spot if spot >= 0 else places[~spot] for spot in columns["spots"].tolist()]
    origins: list[Origin] = [
        origin if origin >= 0 else None if origin == _UNKNOWN else parameters[_UNKNOWN - 1 - origin]
        for origin in columns["origins"].tolist()
    ]
    return Log(
        spots=spots,
        ops=[names[op] for op in columns["ops"].tolist()],
        origins=origins,
        ends=columns["ends"].tolist(),
        unbounded={*columns["unbounded"]},
        kinds=[kinds[kind] for kind in columns["kinds"].tolist()],
    )


@cache
def building() -> Future[Any | None]:
    """The compiled module, under way; None where there is no compiler, or it fails, of which the log tells.

    The first call on a machine takes some 15 seconds, beside whatever else is done, and later ones next to nothing.
    """
    pool = ThreadPoolExecutor(1)
    future = pool.submit(_built)
    pool.shutdown(wait=False)
    return future


def _built() -> Any | None:  # noqa: ANN401  # a compiled module
    try:
        command = _command()
        if command is None:
            return None
        known = hashlib.sha256("\0".join([*command, torch.__version__, sys.version, _SOURCE.read_text()]).encode())
        target = _cache() / f"{_NAME}-{known.hexdigest()[:16]}{sysconfig.get_config_var('EXT_SUFFIX')}"
        if not target.exists():
            _compile(command, target)
        return _loaded(target)
    except (OSError, ImportError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        # RuntimeError: no home; ImportError: no setuptools, which torch imports; ValueError: quotes in CXX
        logging.getLogger(__name__).warning(
            "the trace runs in Python, more slowly: %s could not be compiled (%s)", _SOURCE, _why(error)
        )
        return None


def _why(error: Exception) -> str:
    """What went wrong, in a line: of a compiler's the first that tells of an error, for its first says where it was."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"not done after {error.timeout:.0f} seconds"
    if not isinstance(error, subprocess.CalledProcessError):
        return str(error)
    said = [line for line in error.stderr.splitlines() if line.strip()]
    telling = [line for line in said if "error" in line]
    return next(iter(telling or said), f"{error.cmd[0]} ended with status {error.returncode}")


def _cache() -> Path:
    """Where compiled files are kept: of the user; a relative path there is to be ignored (XDG Base Directory 0.8)."""
    told = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (told if told.is_absolute() else Path.home() / ".cache") / "gemma-doctor"


def _command() -> list[str] | None:
    """How to compile, but for the file names; None without a compiler."""
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if shutil.which(compiler[0]) is None:
        return None
    from torch.utils.cpp_extension import include_paths, library_paths  # noqa: PLC0415  # takes a while to import

    includes = [*include_paths(), sysconfig.get_path("include")]
    folders = [option for folder in library_paths() for option in (f"-L{folder}", f"-Wl,-rpath,{folder}")]
    return [
        *compiler,
        *("-O2", "-std=c++20", "-fPIC", "-shared", "-fvisibility=hidden"),
        *("-DNDEBUG", f"-DTORCH_EXTENSION_NAME={_NAME}"),  # without NDEBUG torch's own structs are of another size
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *(option for folder in includes for option in ("-isystem", folder)),
        str(_SOURCE),  # libraries come after what needs them
        *folders,
        *("-ltorch_python", "-ltorch", "-ltorch_cpu", "-lc10"),
    ]


def _compile(command: list[str], target: Path) -> None:
    """The file, whole or not at all; two processes may do it at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        subprocess.run(  # noqa: S603
            [*command, "-o", str(made)], check=True, capture_output=True, text=True, errors="replace", timeout=_PATIENCE
        )
        made.replace(target)


def _loaded(path: Path) -> Any:  # noqa: ANN401  # a compiled module
    spec = importlib.util.spec_from_file_location(_NAME, path)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
