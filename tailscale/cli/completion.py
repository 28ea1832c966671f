"""`completion`: scripts for bash, zsh and fish, made from the parser itself, so that they know what it knows.

Owns the three dialects. Names of peers come from a running daemon at the moment they are wanted, and are simply missing
where none runs: completing must not join a tailnet.
"""

from __future__ import annotations

import argparse
import re
from typing import NamedTuple

import trio

from tailscale.cli.arguments import Parser, build_parser
from tailscale.cli.exit_codes import OK
from tailscale.cli.screen import Screen

PEERS = ("host", "address", "peer")  # arguments that take the name of a peer
NAME = re.compile(r"\w[\w.-]{0,252}")  # shells expand what they complete: nothing of a name may be a command to them
FILES = ("file", "state", "config", "socket", "folder", "path")


class Word(NamedTuple):
    """An option of a command."""

    names: tuple[str, ...]
    help: str
    takes: str
    """"" for none; "peer", "file", "value", or the choices, separated by spaces."""


class Verb(NamedTuple):
    """One command."""

    name: str
    help: str
    options: tuple[Word, ...]
    operands: tuple[str, ...]
    """What its operands take, as `Word.takes`."""


async def completion(options: argparse.Namespace, screen: Screen) -> int:
    if options.shell == "peers":
        for name in await trio.to_thread.run_sync(_peers, options):
            screen.say(name)
        return OK
    await trio.lowlevel.checkpoint()
    verbs = read_parser()
    screen.out.write({"bash": bash, "zsh": zsh, "fish": fish}[options.shell](verbs))
    screen.out.flush()
    return OK


def _peers(options: argparse.Namespace) -> list[str]:
    from tailscale.cli.up import places_of
    from tailscale.daemon.client import Client
    from tailscale.daemon.requests import DaemonError

    try:
        names = [peer["hostname"] for peer in Client(places_of(options).socket).get("peers")]
    except DaemonError:
        return []
    return [name for name in names if NAME.fullmatch(name)]


def read_parser() -> list[Verb]:
    """Every command, from the parser."""
    return [_verb(name, each) for name, each in build_parser().commands().items()]


def _verb(name: str, parser: Parser) -> Verb:
    options, operands = [], []
    for action in parser.actions():
        if action.option_strings:
            text = (action.help or "").replace("%%", "%")
            options.append(Word(tuple(action.option_strings), text, _takes(action)))
        else:
            operands.append(_takes(action))
    help = (parser.description or "").rstrip(".")
    return Verb(name, help, tuple(options), tuple(operands))


def _takes(action: argparse.Action) -> str:
    if action.choices:
        return " ".join(map(str, action.choices))
    if action.nargs == 0:
        return ""
    if action.dest in PEERS:
        return "peer"
    return "file" if action.dest in FILES else "value"


# The dialects


def bash(verbs: list[Verb]) -> str:
    cases = []
    for verb in verbs:
        words = " ".join(name for option in verb.options for name in option.names)
        takers = "".join(
            f"            {'|'.join(option.names)}) {_bash_values(option.takes)}; return;;\n"
            for option in verb.options
            if option.takes
        )
        operand = _bash_values(verb.operands[0] if verb.operands else "")
        cases.append(
            f'    {verb.name})\n        case "$previous" in\n{takers}        esac\n'
            f'        if [[ $current == -* ]]; then COMPREPLY=($(compgen -W "{words}" -- "$current"))\n'
            f"        else {operand}; fi;;\n"
        )
    names = " ".join(verb.name for verb in verbs)
    return (
        "# bash: source <(pytailscale completion bash)\n"
        "_pytailscale() {\n"
        '    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" command="" word\n'
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do\n'
        f'        case " {names} " in *" $word "*) command="$word"; break;; esac\n'
        "    done\n"
        "    COMPREPLY=()\n"
        '    case "$command" in\n'
        f'    "") COMPREPLY=($(compgen -W "{names}" -- "$current"));;\n' + "".join(cases) + "    esac\n"
        "}\n"
        "complete -F _pytailscale pytailscale\n"
    )


def _bash_values(takes: str) -> str:
    match takes:
        case "peer":
            return 'COMPREPLY=($(compgen -W "$(pytailscale completion peers 2>/dev/null)" -- "$current"))'
        case "file":
            return 'COMPREPLY=($(compgen -f -- "$current"))'
        case "value" | "":
            return ":"
    return f'COMPREPLY=($(compgen -W "{takes}" -- "$current"))'


def zsh(verbs: list[Verb]) -> str:
    cases = []
    for verb in verbs:
        lines = [_zsh_option(option) for option in verb.options]
        lines += [f"'*:{takes}:{_zsh_values(takes)}'" for takes in verb.operands[:1]]
        cases.append(f"    {verb.name})\n        _arguments " + " \\\n            ".join(lines) + ";;\n")
    names = "\n".join(f"        '{verb.name}:{_zsh_text(verb.help)}'" for verb in verbs)
    return (
        "#compdef pytailscale\n"
        "# zsh: pytailscale completion zsh > ${fpath[1]}/_pytailscale\n"
        '_pytailscale_peers() { local -a peers; peers=(${(f)"$(pytailscale completion peers 2>/dev/null)"}); '
        "compadd -a peers }\n"
        "_pytailscale() {\n"
        "    local -a commands\n"
        f"    commands=(\n{names}\n    )\n"
        "    local -i at=2  # options may stand before the command\n"
        "    while (( at < CURRENT )) && [[ -z ${commands[(r)${(b)words[at]}:*]} ]]; do (( at++ )); done\n"
        "    if (( at == CURRENT )); then _describe command commands; return; fi\n"
        "    local command=$words[at]\n"
        "    shift $(( at - 1 )) words; (( CURRENT -= at - 1 ))\n"
        "    case $command in\n" + "".join(cases) + "    esac\n"
        "}\n"
        'if [ "$funcstack[1]" = "_pytailscale" ]; then _pytailscale "$@"; else compdef _pytailscale pytailscale; fi\n'
    )


def _zsh_option(option: Word) -> str:
    value = f":{option.names[-1].lstrip('-')}:{_zsh_values(option.takes)}" if option.takes else ""
    text = f"[{_zsh_text(option.help)}]{value}"
    if len(option.names) == 1:
        return f"'{option.names[0]}{text}'"
    return f"{{{','.join(option.names)}}}'{text}'"


def _zsh_values(takes: str) -> str:
    match takes:
        case "peer":
            return "_pytailscale_peers"
        case "file":
            return "_files"
        case "value" | "":
            return " "
    return f"({takes})"


def _zsh_text(text: str) -> str:
    return text.replace("'", "").replace("[", "(").replace("]", ")").replace(":", "\\:")


def fish(verbs: list[Verb]) -> str:
    lines = ["# fish: pytailscale completion fish > ~/.config/fish/completions/pytailscale.fish"]
    lines.append("complete -c pytailscale -f")
    for verb in verbs:
        lines.append(f"complete -c pytailscale -n __fish_use_subcommand -a {verb.name} -d '{_fish_text(verb.help)}'")
        seen = f"-n '__fish_seen_subcommand_from {verb.name}'"
        for option in verb.options:
            named = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in option.names)
            values = f" {_fish_values(option.takes)}" if option.takes else ""
            lines.append(f"complete -c pytailscale {seen} {named}{values} -d '{_fish_text(option.help)}'")
        if verb.operands and verb.operands[0] != "value":
            lines.append(f"complete -c pytailscale {seen} {_fish_values(verb.operands[0]).removeprefix('-r ')}")
    return "\n".join(lines) + "\n"


def _fish_values(takes: str) -> str:
    match takes:
        case "peer":
            return "-r -a '(pytailscale completion peers 2>/dev/null)'"
        case "file":
            return "-r -F"
        case "value":
            return "-r"
    return f"-r -a '{takes}'"


def _fish_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")
