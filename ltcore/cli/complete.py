"""Completion of command lines in a shell: commands, flags and their values, recipes, keys and their values.

Answered from the parsers and from the table of keys, without torch or pydantic. Not by argcomplete or shtab: both expect one
parser with subcommands, where ours are made for the command that is given; argcomplete completes no word after a flag
where words and flags may come in any order, and shtab's scripts know nothing of recipes and keys.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence

from ltcore.cli import export_parsers, glt_parser, parsers, shards_parser
from ltcore.cli.parser import DESCRIBE, Described
from ltcore.cli.plugin_flag import without_plugins
from ltcore.config import keys
from ltcore.models import timm_names

_WITH_RUN_KEYS = ("train", "tune", "show")

_BASH = """\
_ltcore() {
    local IFS=' ' words current head
    read -r -a words <<< "${COMP_LINE:0:COMP_POINT}"
    [[ "${COMP_LINE:0:COMP_POINT}" == *' ' ]] && words+=('')
    current="${words[${#words[@]}-1]}"
    IFS=$'\\n'
    COMPREPLY=($("$1" completion --words "${words[@]:1}" 2>/dev/null))
    # bash takes what follows = or : for a word of its own
    if [[ "$COMP_WORDBREAKS" == *=* ]]; then
        head="${current%"${current##*[=:]}"}"
        COMPREPLY=("${COMPREPLY[@]#"$head"}")
    fi
    [[ "${COMPREPLY[*]}" == *[=:] ]] && compopt -o nospace 2>/dev/null
}
complete -o default -F _ltcore ltcore
"""
_ZSH = """\
#compdef ltcore
_ltcore() {
    local -a found open
    found=("${(@f)$("${words[1]}" completion --words "${(@)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null)}")
    found=(${found:#})
    open=(${(M)found:#*[=:]})
    (( $#found )) || { _files; return }
    compadd -Q -S '' -a open
    found=(${found:#*[=:]})
    compadd -Q -a found
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _ltcore ltcore
"""
_FISH = """\
function __ltcore_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found ($words[1] completion --words $words[2..] "$current" 2>/dev/null | string match -r '.+')
    if set -q found[1]
        printf '%s\\n' $found
    else
        __fish_complete_path "$current"
    end
end
complete -c ltcore -f -a '(__ltcore_complete)'
"""


def script(shell: str) -> str:
    """Returns the script that teaches a shell to complete ``ltcore``."""
    return {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}[shell]


def candidates(words: Sequence[str], commands: Iterable[str]) -> list[str]:
    """Returns what the last of ``words``, perhaps empty, may become; [] leaves it to the shell, which knows files.

    ``words`` are those after ``ltcore``, up to the cursor.
    """
    *before, current = without_plugins(list(words)) or [""]
    if not before:
        return _beginning_with(current, [*commands, "--help", "--version"])
    if before[:2] == ["shards", "glt"]:
        before = ["shards_glt", *before[2:]]
    parser = _parser_of(before[0])
    shown = (action for action in parser._actions if action.help != argparse.SUPPRESS)
    flags = {flag: action for action in shown for flag in action.option_strings}
    given = flags.get(before[-1])
    if given is not None and given.nargs is None:
        return _beginning_with(current, _values(given))
    if current.startswith("-"):
        flag, equals, value = current.partition("=")
        if equals and flag in flags:
            return [f"{flag}={found}" for found in _beginning_with(value, _values(flags[flag]))]
        return _beginning_with(current, [flag for flag in flags if flag.startswith("--")])
    return _beginning_with(current, _words(before, parser, current))


def _beginning_with(current: str, found: Iterable[str]) -> list[str]:
    return [word for word in found if word.startswith(current)]


def _parser_of(command: str) -> argparse.ArgumentParser:
    name = f"read_{command}"
    home = next(
        (module for module in (parsers, shards_parser, glt_parser, export_parsers) if hasattr(module, name)), None
    )
    reader = getattr(home, name) if home is not None else parsers.read_nothing
    try:
        reader(None, DESCRIBE)
    except Described as found:
        return found.parser
    raise AssertionError(f"read_{command} reads its command line in another way")


def _values(action: argparse.Action) -> list[str]:
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    if action.dest == "sweep":
        return _packaged("sweep")
    return _sources() if action.dest == "data" else []


def _words(before: Sequence[str], parser: argparse.ArgumentParser, current: str) -> list[str]:
    """Returns the words that are no flags, as far as they can be known."""
    command = before[0]
    key, equals, typed = current.partition("=")
    if command in _WITH_RUN_KEYS:
        return (
            [f"{key}={value}" for value in _values_of(key, typed, before)]
            if equals
            else [*_packaged("recipe"), *_keys(command)]
        )
    if command == "keys":
        return [key for key, _ in keys.find(None)]
    choices = [action.choices for action in parser._actions if not action.option_strings and action.choices]
    return [str(choice) for choice in (choices[0] if choices else ())]


def _keys(command: str) -> Iterator[str]:
    """Yields ``key=`` of every key that the command takes."""
    yield from (f"{key}=" for key in _off_and_on(keys.run_keys()))
    yield from (f"{key}=" for key, _ in keys.leaves(keys.run_keys()))
    if command == "tune":
        yield from (f"sweep.{key}=" for key, leaf in keys.leaves(keys.sweep_keys()) if not leaf.type.startswith("dict"))
        yield from (f"sweep.space.{key}=" for key, _ in keys.leaves(keys.run_keys()))


def _off_and_on(section: keys.Section, prefix: str = "") -> Iterator[str]:
    """Yields the sections that null switches off."""
    for name, field in section.fields.items():
        if isinstance(field, keys.Section):
            if field.optional:
                yield f"{prefix}{name}"
            yield from _off_and_on(field, f"{prefix}{name}.")


def _values_of(key: str, typed: str, before: Sequence[str]) -> list[str]:
    """Returns values of a key, as far as they can be known; ``before`` are the words that stand before it."""
    if key.startswith("sweep.space."):
        from ltcore.config.space import LISTS, RANGES

        return [*(f"{kind}:" for kind in (*RANGES, *LISTS)), "null"]
    if key in _off_and_on(keys.run_keys()):
        return ["null", "on"]
    if key in ("data.uri", "sweep.recipe"):
        return _sources() if key == "data.uri" else _packaged("recipe")
    if key == "model.weights":
        return ["null", "auto", "default", *_tags(before)]
    if key in ("augment.view1", "augment.view2"):
        return [row.name for row in keys.methods() if row.kind == "augmentation"]
    if key in ("train.select", "sweep.metric"):
        return list(keys.selectable())
    leaf = dict(keys.find(None)).get(key)
    if leaf is None:
        return []
    if leaf.allowed.beginning == timm_names.PREFIX:
        return [*map(str, leaf.allowed.choices), *timm_names.complete(typed)]
    listed = [str(choice) for choice in leaf.allowed.choices] or (["true", "false"] if leaf.type == "bool" else [])
    listed += [leaf.allowed.beginning] * bool(leaf.allowed.beginning)
    return [*listed, "null"] if leaf.type.endswith("| None") else listed


def _tags(before: Sequence[str]) -> list[str]:
    """Returns the tags of the published weights of the network of timm that was named last, if one was."""
    named = [word.removeprefix("model.name=") for word in before if word.startswith(f"model.name={timm_names.PREFIX}")]
    name = named[-1] if named else ""
    beginning = name if "." in name else f"{name}."
    return [timm_names.split_name(found)[1] for found in timm_names.complete(beginning)] if name else []


def _packaged(kind: str) -> list[str]:
    """Returns the names in ``recipes.packaged``, without the YAML reader that comes with it."""
    return sorted(file.stem for file in (keys.PACKAGE / f"{kind}s").glob("*.yaml"))


def _sources() -> list[str]:
    return [row.name for row in keys.methods() if row.kind == "data" and "|" not in row.name]
