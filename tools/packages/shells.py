"""What a shell and `man` know of a program, from its table of commands.

Completions are static: no Python starts at a TAB.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from drengine import __version__
from tools.command_tree import Command, commands_of

BASH = """\
# Completion for {program}, made from its table of commands.
{function}() {{
  local words path={program} word i
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${{COMP_WORDS[i]}}
    case " ${{{function}_words[$path]}} " in *" $word "*) path+=" $word" ;; esac
  done
  words=${{{function}_words[$path]}}
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}")
}}
declare -gA {function}_words=(
{table}
)
complete -o default -F {function} {program}
"""


def bash(program: str) -> str:
    """For bash."""
    table = "\n".join(
        f"  ['{program}{path and ' '}{path}']='{' '.join(words)}'" for path, words in _words(program).items()
    )
    return BASH.format(program=program, function=f"_{program.replace('-', '_')}", table=table)


def zsh(program: str) -> str:
    """For zsh, by its reading of bash's."""
    return f"#compdef {program}\nautoload -Uz bashcompinit && bashcompinit\n{bash(program)}"


def fish(program: str) -> str:
    """For fish."""
    lines = [f"complete -c {program} -f"]
    for path, words in _words(program).items():
        seen = " ".join(f"and __fish_seen_subcommand_from {word};" for word in path.split())
        first = seen.removeprefix("and ").rstrip(";") or "__fish_use_subcommand"
        plain = [word for word in words if not word.startswith("-")]
        lines += [f"complete -c {program} -n '{first}' -a '{' '.join(plain)}'"] if plain else []
        lines += [f"complete -c {program} -n '{first}' -l {word[2:]}" for word in words if word.startswith("--")]
    return "\n".join(lines) + "\n"


COMPLETIONS: Mapping[str, Callable[[str], str]] = {"bash": bash, "zsh": zsh, "fish": fish}


def man_page(program: str) -> str:
    """One page with every command and option."""
    parts = [
        f'.TH {program.upper()} 1 "" "drengine {__version__}" "User Commands"',
        f".SH NAME\n{_roff(program)} \\- disaster recovery at the edge",
        f".SH SYNOPSIS\n.B {_roff(program)}\n.I COMMAND\n[\\fIOPTION\\fR]...",
        ".SH COMMANDS",
        *(_man_of(each) for each in commands_of(program)),
        ".SH SEE ALSO\n/usr/share/doc/drengine, https://www.freedesktop.org/software/systemd/man/systemctl.html",
    ]
    return "\n".join(parts) + "\n"


def _man_of(command: Command) -> str:
    lines = [f".SS {_roff(command.name)}", _roff(command.summary)]
    for each in command.parameters:
        lines.append(f".TP\n\\fB{_roff(', '.join(each.names))}\\fR\n{_roff(' '.join(each.help.split()))}")
    return "\n".join(lines)


def _roff(text: str) -> str:
    """Text that roff takes as it is."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _words(program: str) -> dict[str, list[str]]:
    """What may follow, by the words that came before, without the program's name."""
    words: dict[str, list[str]] = defaultdict(list)
    for command in commands_of(program):
        path = command.name.split()[1:]
        for depth, word in enumerate(path):
            before = " ".join(path[:depth])
            if word not in words[before]:
                words[before].append(word)
        options = [name for each in command.parameters if each.is_option for name in each.names]
        words[" ".join(path)] += [*options, "--help"]
    return dict(words)
