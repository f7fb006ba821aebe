"""``gemma-doctor completion``: a script for the shell, written once.

The script holds every command, option, choice, rule and pass as words, so that pressing Tab starts no Python at all,
and neither does an ordinary start pay for it. It is as old as the version that wrote it.
"""
# ruff: noqa: PLC0415  # what is heavy is imported when it is needed

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import typer

from gemma_doctor.cli.frame import app
from gemma_doctor.reports.documents import STDOUT, write

__all__ = ["EPILOG", "command"]

Shell: TypeAlias = Literal["bash", "zsh", "fish"]

EPILOG = """Put one of these into your shell's own file:

\b
  eval "$(gemma-doctor completion bash)"      # ~/.bashrc
  eval "$(gemma-doctor completion zsh)"       # ~/.zshrc
  gemma-doctor completion fish | source       # ~/.config/fish/config.fish

Faster at the start of a shell: write the script to a file once, and source that."""

_BASH = """_gemma_doctor() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words=
  [ "$before" = = ] && before=${COMP_WORDS[COMP_CWORD-2]}
  [ "$word" = = ] && word= before=${COMP_WORDS[COMP_CWORD-1]}
  if [ "$COMP_CWORD" -eq 1 ]; then
    words=%(commands)s
  else
    case "${COMP_WORDS[1]} $before" in
%(values)s
      *) case "${COMP_WORDS[1]} $word" in
%(options)s
      esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o bashdefault -o default -F _gemma_doctor gemma-doctor
"""
_ZSH = """whence compdef >/dev/null || { autoload -Uz compinit && compinit; }
autoload -Uz bashcompinit && bashcompinit
"""
_FISH = "complete -c gemma-doctor"


@dataclass(frozen=True, slots=True)
class _Parameter:
    """An option, or the argument of a command (which has no names).

    Attributes:
        names: ``--quiet``, ``-q``.
        values: What may follow; empty where anything or nothing may.
        takes: Whether something follows.
        help: A sentence.
    """

    names: tuple[str, ...]
    values: tuple[str, ...]
    takes: bool
    help: str


def command(
    shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish", help="The shell to write it for.")],
) -> None:
    """Print a script that makes Tab know all of this."""
    group: Any = typer.main.get_command(app)
    helps = {name: found.get_short_help_str(limit=80) for name, found in group.commands.items()}
    known = {name: tuple(_parameters(found)) for name, found in group.commands.items()}
    write(STDOUT, "\n".join(_fish(helps, known)) + "\n" if shell == "fish" else _bash(known, zsh=shell == "zsh"))


def _parameters(command: Any) -> Iterator[_Parameter]:  # noqa: ANN401  # click's types: typer uses a copy of it
    yield _Parameter(("--help", "-h"), (), takes=False, help="Show the help and exit.")
    for param in command.params:
        names = tuple(param.opts) if param.param_type_name == "option" else ()
        takes = not getattr(param, "is_flag", False)
        yield _Parameter(names, tuple(_values(param)), takes, param.help or "")


def _values(param: Any) -> Sequence[str]:  # noqa: ANN401  # as above
    """Every value that a parameter may have, if they can be told."""
    from gemma_doctor.catalog import RULES
    from gemma_doctor.repair.planning.registry import PASSES

    ids, passes = [rule.id for rule in RULES], [one.name for one in PASSES]
    special = {"select": ids, "ignore": ids, "pass_": passes, "name": [*ids, *(r.name for r in RULES), *passes]}
    return special.get(param.name) or [word for word in _choices(param.metavar or "") if word.islower()]


def _choices(metavar: str) -> list[str]:
    """``float16|bfloat16``; what is in capitals stands for something else."""
    return metavar.split("|") if "|" in metavar else []


def _bash(known: Mapping[str, tuple[_Parameter, ...]], *, zsh: bool) -> str:
    values, options = [], []
    for name, parameters in known.items():
        for parameter in parameters:
            if parameter.values:
                places = " | ".join(f'"{name} {word}"' for word in parameter.names or (name,))
                values.append(f"      {places}) words={_quoted(parameter.values)} ;;")
        names = [word for parameter in parameters for word in parameter.names]
        options.append(f'        "{name} -"*) words={_quoted(names)} ;;')
    parts = {"commands": _quoted(tuple(known)), "values": "\n".join(values), "options": "\n".join(options)}
    return (_ZSH if zsh else "") + _BASH % parts


def _quoted(words: Sequence[str]) -> str:
    return shlex.quote(" ".join(words))


def _fish(helps: Mapping[str, str], known: Mapping[str, tuple[_Parameter, ...]]) -> Iterator[str]:
    for name, text in helps.items():
        yield f"{_FISH} -n __fish_use_subcommand -f -a {name} -d {_fish_text(text)}"
    for name, parameters in known.items():
        for parameter in parameters:
            words = [f"{_FISH} -n '__fish_seen_subcommand_from {name}'"]
            words += [f"-{'l' if word.startswith('--') else 's'} {word.lstrip('-')}" for word in parameter.names]
            if parameter.values:
                words.append(f"{'-x' if parameter.names else '-f'} -a '{' '.join(parameter.values)}'")
            elif parameter.takes and parameter.names:
                words.append("-r -F")
            if parameter.names or parameter.values:
                yield f"{' '.join(words)} -d {_fish_text(parameter.help)}"


def _fish_text(text: str) -> str:
    """The text in single quotes, in which fish knows two escapes."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
