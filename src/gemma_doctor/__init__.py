"""Tells whether a checkpoint will break in float16, before a GPU-hour is spent.

::

    import gemma_doctor

    report = gemma_doctor.scan("path/to/checkpoint")
    for finding in report.findings:
        print(finding.rule, finding.tensor, finding.message)

Importing the package loads none of its dependencies; each name is loaded when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

from gemma_doctor.version import __version__

__all__ = [
    "DoctorError",
    "Finding",
    "MeasuredTensor",
    "Measures",
    "Options",
    "Plan",
    "PreflightCallback",
    "PreflightError",
    "Report",
    "Request",
    "Suppressions",
    "TensorInfo",
    "TensorStats",
    "__version__",
    "exit_code",
    "kernels",
    "plan",
    "repair",
    "scan",
    "scan_all",
    "verify",
]

TYPE_CHECKING = False  # typing's own takes as long to load as the rest: a Ctrl-C would show its lines
if TYPE_CHECKING:
    from typing import Any

    from gemma_doctor import kernels
    from gemma_doctor.doctor import Options, exit_code, plan, repair, scan, scan_all, verify
    from gemma_doctor.errors import DoctorError, PreflightError
    from gemma_doctor.inspect.suppression import Suppressions
    from gemma_doctor.plans import Plan
    from gemma_doctor.preflight import PreflightCallback
    from gemma_doctor.records import Finding, Report
    from gemma_doctor.tensors import MeasuredTensor, TensorInfo, TensorStats
    from gemma_doctor.verify.measures import Measures, Request

_HOME = {
    "DoctorError": "errors",
    "Finding": "records",
    "MeasuredTensor": "tensors",
    "Measures": "verify.measures",
    "Options": "doctor",
    "Plan": "plans",
    "PreflightCallback": "preflight",
    "PreflightError": "errors",
    "Report": "records",
    "Request": "verify.measures",
    "Suppressions": "inspect.suppression",
    "TensorInfo": "tensors",
    "TensorStats": "tensors",
    "exit_code": "doctor",
    "plan": "doctor",
    "repair": "doctor",
    "scan": "doctor",
    "scan_all": "doctor",
    "verify": "doctor",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  # it is whatever the name stands for
    if name == "kernels":
        return import_module(f"{__name__}.kernels")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """This package, in which a verb that is also a room (``repair``, ``verify``) stays the verb.

    Importing the folder would put it in the function's place; a property comes first, and its setter is
    where the import system's assignment ends. ``from gemma_doctor.repair import x`` finds what is in the room;
    ``import gemma_doctor.repair.x as y`` looks for it on the function, and fails.
    """

    @property
    def repair(self) -> Any:  # noqa: ANN401  # the function; its type is declared above
        return __getattr__("repair")

    @repair.setter
    def repair(self, room: ModuleType) -> None: ...

    @property
    def verify(self) -> Any:  # noqa: ANN401  # as above
        return __getattr__("verify")

    @verify.setter
    def verify(self, room: ModuleType) -> None: ...


sys.modules[__name__].__class__ = _Package
