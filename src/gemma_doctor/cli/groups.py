"""Options that belong together, declared once: a command takes them as one record.

typer reads a command's options from its signature and has no groups. :func:`grouped` puts a record's fields in the
place of the parameter that takes the record, so that typer sees single options and the command gets the record.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

__all__ = ["grouped"]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of the records that it takes.

    Args:
        command: Its parameters are options and arguments of typer's, or dataclasses of such with defaults.
    """
    hints = inspect.get_annotations(command, eval_str=True)  # get_type_hints hides Annotated in Optional before 3.11
    records: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    @wraps(command)
    def called(**given: Any) -> None:  # noqa: ANN401  # whatever the options are
        held = {
            name: record(**{field.name: given.pop(field.name) for field in fields(record)})
            for name, record in records.items()
        }
        command(**given, **held)

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in records:
            parameters += _options(records[parameter.name])
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del called.__wrapped__  # typing would read the annotations of the original
    return called


def _options(record: Any) -> list[inspect.Parameter]:  # noqa: ANN401  # a dataclass
    """A parameter for each field."""
    hints = get_type_hints(record, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(record)
    ]
