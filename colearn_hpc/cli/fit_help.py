"""``fit --help``: our own options first, without waiting for torch. ``--help.trainer`` has Lightning's.

CoLearning's arguments are read from its source text: importing it would take seconds.
"""

from __future__ import annotations

import ast
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from colearn_hpc._quick_imports import import_quickly
from colearn_hpc.cli import describe
from colearn_hpc.cli.options import EVALUATION, OPTIONS, SET_BY_US

_CALLBACK = Path(__file__).parents[1] / "trainer" / "callback.py"
_INDENT = 6

_MODEL = (
    ("--model CLASS", "The LightningModule: Classifier, MultilabelTask, or the dotted path of your own."),
    ("--model.ARGUMENT VALUE", "One of its arguments; `--model.help CLASS` lists them."),
    ("--data CLASS", "The LightningDataModule: ShardDataModule, or the dotted path of your own."),
    ("--data.ARGUMENT VALUE", "One of its arguments; `--data.help CLASS` lists them."),
    ("--optimizer CLASS", "Any torch.optim class in place of the model's own optimizer."),
    ("--ckpt_path PATH", "Checkpoint to start from: its path, or last."),
    ("--seed_everything SEED", "Seed of all random numbers. (default: 0)"),
)
_MORE = (
    ("--config FILE", "Configuration file; may be given several times. Later settings win, options win over files."),
    ("--print_config", "Print the whole configuration as it was understood, and stop."),
    ("--help.trainer", "List the options of Lightning's Trainer (--trainer.accelerator, --trainer.precision, ...)."),
)


def asked(command: str, argv: Sequence[str]) -> Callable[[], str] | None:
    """What makes the page that a command line asks for; None where it asks for none."""
    if "-h" in argv or "--help" in argv:
        return lambda: page(command)
    return trainer_page if "--help.trainer" in argv else None


def page(command: str, width: int | None = None) -> str:
    """The help of ``fit``, ``validate``, ``test`` or ``predict``.

    Args:
        command: which of them.
        width: columns; None asks the terminal.
    """
    width = min(width or shutil.get_terminal_size().columns, 110)
    margin = " " * _INDENT
    own = [
        (f"--{o.name} {o.value}".rstrip(), o.help if o.is_switch else f"{o.help} (default: {_yaml(o.default)})")
        for o in OPTIONS
        if command == "fit" or o.name in ("name", "runs", "centers")
    ]
    groups = [("the run", own), ("model and data", list(_MODEL)), ("more", list(_MORE))]
    if command == "fit":
        groups.insert(1, ("co-learning (in a file: under `colearning:`)", list(colearning_options())))
    usage = [f"usage: colearn-hpc {command} --config FILE [options]"]
    if command in EVALUATION:
        usage = [
            f"usage: colearn-hpc {command} RUN [options]",
            f"       colearn-hpc {command} --config FILE --ckpt_path FILE",
        ]
        run = ("RUN", "A run folder, as runs/quickstart: its config.yaml and its shared.ckpt are taken.")
        groups.insert(0, (command, [run, *EVALUATION[command]]))
    lines = [*usage, "", *textwrap.wrap(describe(command), width)]
    for title, options in groups:
        lines += ["", f"{title}:"]
        for option, text in options:
            lines += [f"  {option}", *textwrap.wrap(text, width, initial_indent=margin, subsequent_indent=margin)]
    return "\n".join(lines)


def colearning_options() -> Iterator[tuple[str, str]]:
    """(option, help) for every argument of CoLearning that the command line takes."""
    tree = ast.parse(_CALLBACK.read_text())
    kind = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "CoLearning")
    init = next(node for node in kind.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    texts = argument_texts(ast.get_docstring(kind) or "")
    arguments = init.args.args[1:]
    for argument, default in zip(arguments, init.args.defaults, strict=True):
        if argument.arg not in SET_BY_US:
            option = f"--colearning.{argument.arg} {argument.arg.upper()}"
            yield option, f"{texts[argument.arg]} (default: {_yaml(ast.literal_eval(default))})"


def argument_texts(docstring: str) -> dict[str, str]:
    """What a docstring says of each argument, without its markup."""
    section = re.search(r"^Args:\n(.*?)(?:\n\n\w+:\n|\Z)", docstring, re.S | re.M)
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section[1] if section else "", re.M)
    return {name: _plain(text) for name, text in entries}


def _plain(text: str) -> str:
    text = re.sub(r":\w+:`~?([\w.]+)`", lambda found: found[1].rpartition(".")[2], text)
    text = re.sub(r"\b(None|True|False)\b", lambda found: _yaml(ast.literal_eval(found[0])), text.replace("``", ""))
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] if re.match(r"[a-z]\w", text) else text


def _yaml(value: object) -> str:
    """A value as the command line and a configuration file take it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def trainer_page() -> str:
    """The options of Lightning's Trainer, as jsonargparse describes them."""
    import_quickly()  # before Lightning does
    from colearn_hpc._lightning import LightningArgumentParser, Trainer

    parser = LightningArgumentParser(
        usage="colearn-hpc fit --config FILE [options]", description="What Lightning's Trainer takes.", add_help=False
    )
    parser.add_lightning_class_args(Trainer, "trainer")
    return parser.format_help()
