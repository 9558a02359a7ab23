"""``colearn-hpc completion bash|zsh``: what lets a shell complete commands and options.

The words are those that each command's ``--help`` names, at the time when the script is printed.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
from collections.abc import Callable, Sequence

from colearn_hpc.cli import COMMANDS, LIGHTNING, describe, fit_help
from colearn_hpc.cli.parsing import Parser

_HEAD = {
    "bash": """# colearn-hpc for bash: eval "$(colearn-hpc completion bash)", or save this in
# ~/.local/share/bash-completion/completions/colearn-hpc
""",
    "zsh": """# colearn-hpc for zsh: eval "$(colearn-hpc completion zsh)" in ~/.zshrc
autoload -Uz compinit bashcompinit && compinit && bashcompinit
""",
}
_SCRIPT = """_colearn_hpc_words() {{
  case "$1" in
{cases}
    *) return 1 ;;
  esac
}}
_colearn_hpc() {{
  local key='' word longer i
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${{COMP_WORDS[i]}}
    longer=${{key:+$key }}$word
    if [ "$word" = -- ]; then key=''; elif _colearn_hpc_words "$longer" >/dev/null; then key=$longer; fi
  done
  # A file, or any other value, after an option.
  if [[ ${{COMP_WORDS[COMP_CWORD - 1]}} == --?* && ${{COMP_WORDS[COMP_CWORD]}} != -* ]]; then return; fi
  COMPREPLY=($(compgen -W "$(_colearn_hpc_words "$key")" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _colearn_hpc colearn-hpc
"""


def main(argv: Sequence[str]) -> int:
    """Run ``completion``; returns 0."""
    parser = Parser(prog="colearn-hpc completion", description=describe("completion"))
    parser.add_argument("shell", choices=_HEAD)
    shell = parser.parse_args(argv).shell
    cases = [f"    {shlex.quote(key)}) echo {shlex.quote(' '.join(words))} ;;" for key, words in table().items()]
    print(_HEAD[shell] + _SCRIPT.format(cases="\n".join(cases)), end="")
    return 0


def table() -> dict[str, list[str]]:
    """What may follow: nothing, a command, or a command and its subcommand -> words."""
    found = {"": [*COMMANDS, "--help", "--version"]}
    trainer: list[str] = []
    for command, (module, _) in COMMANDS.items():
        if module in LIGHTNING:
            trainer = trainer or options(fit_help.trainer_page())
            found[command] = [*options(fit_help.page(command, 100)), *trainer]
            continue
        run = importlib.import_module(f"colearn_hpc.cli.{module}").main
        text = help_of(run)
        below = subcommands(text)
        found[command] = [*below, *options(text)]
        found |= {f"{command} {name}": options(help_of(run, name)) for name in below}
    return found


def help_of(run: Callable[[list[str]], int], *words: str) -> str:
    """What a command prints for ``--help``."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        run([*words, "--help"])
    return printed.getvalue()


def options(text: str) -> list[str]:
    """The options that a help text lists, each once."""
    listed = re.findall(r"^ +(?:-\w, )?(--[a-z][\w.-]*)", text, re.MULTILINE)
    return [option for option in dict.fromkeys(listed) if not option.endswith((".", ".ARGUMENT"))]


def subcommands(text: str) -> list[str]:
    """The subcommands that a help text of argparse lists, by their indentation."""
    listed = re.search(r"^positional arguments:\n  (?:\{|[A-Z]+\n)(.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    return re.findall(r"^    ([a-z][\w-]*)", listed[1], re.MULTILINE) if listed else []
