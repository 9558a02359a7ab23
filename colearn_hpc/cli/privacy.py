"""``colearn-hpc privacy plan``: how much noise a privacy budget asks for, or what a training would spend."""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Sequence

from colearn_hpc.algorithm.local_epochs import FixedEpochs, IncreasingEpochs
from colearn_hpc.cli import describe
from colearn_hpc.cli.parsing import Parser
from colearn_hpc.errors import ColearnError, ConfigurationError
from colearn_hpc.privacy.planner import Plan, most_epochs, plan_epochs, plan_epsilon, plan_noise
from colearn_hpc.privacy.sampling import Sampling
from colearn_hpc.protocol.messages import describe_error

_EPILOG = """Give two of these three, and the third is found:
  --noise, --epsilon, and a length: --epochs, or --rounds with --local-epochs.

  colearn-hpc privacy plan --examples 10000 --batch 100 --rounds 5 --local-epochs 2 --epsilon 4
"""


def main(argv: Sequence[str]) -> int:
    """Run ``privacy``; returns 0, or 2 where the numbers do not make a plan."""
    parser = Parser(prog="colearn-hpc privacy", description=describe("privacy"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    plan = commands.add_parser(
        "plan",
        help="noise from ε, ε from noise, or epochs from both",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.add_argument("--examples", type=int, required=True, help="records of the site")
    plan.add_argument("--batch", type=int, required=True, help="expected records per batch: batch_size times ranks")
    plan.add_argument("--epochs", type=int, help="local epochs of the whole run")
    plan.add_argument("--rounds", type=int, help="rounds, in place of --epochs")
    plan.add_argument("--local-epochs", type=int, default=1, help="T_0, local epochs of the first round")
    plan.add_argument("--max-local-epochs", type=int, help="bound of T")
    plan.add_argument("--rule", choices=("ile", "fle"), default="ile", help="may T double (ile), or is it fixed (fle)?")
    plan.add_argument("--epsilon", type=float, help="ε that the whole run may spend")
    plan.add_argument("--noise", type=float, help="σ, in units of the clipping norm")
    plan.add_argument("--delta", type=float, default=1e-5, help="δ; below 1 / examples (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        print("\n".join(_lines(arguments)))
    except ColearnError as error:
        print(f"colearn-hpc: error: {describe_error(error)}", file=sys.stderr)
        return 2
    return 0


def _lines(arguments: argparse.Namespace) -> list[str]:
    sampling = Sampling(arguments.examples, arguments.batch)
    rounds = _local_epochs(arguments)
    epochs = sum(rounds) if rounds else arguments.epochs
    given = {"epsilon": arguments.epsilon, "noise": arguments.noise, "length": epochs}
    if [value is None for value in given.values()].count(True) != 1:
        found = ", ".join(name for name, value in given.items() if value is not None) or "none"
        raise ConfigurationError(f"give two of --noise, --epsilon and a length (--epochs or --rounds); found {found}")
    if arguments.noise is None:
        plan = plan_noise(sampling, epochs, arguments.epsilon, arguments.delta)
    elif arguments.epsilon is None:
        plan = plan_epsilon(sampling, epochs, arguments.noise, arguments.delta)
    else:
        plan = plan_epochs(sampling, arguments.noise, arguments.epsilon, arguments.delta)
    return _table(plan, rounds, arguments)


def _local_epochs(arguments: argparse.Namespace) -> list[int]:
    """The most local epochs that each round can have; none where --rounds was not given."""
    if arguments.rounds is None:
        return []
    if arguments.epochs is not None:
        raise ConfigurationError("--epochs and --rounds exclude each other; give one of them")
    try:
        if arguments.rule == "fle":
            rule: FixedEpochs | IncreasingEpochs = FixedEpochs(arguments.local_epochs)
        else:
            rule = IncreasingEpochs(arguments.local_epochs, maximum=arguments.max_local_epochs)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    return list(itertools.islice(most_epochs(rule), arguments.rounds))


def _table(plan: Plan, rounds: Sequence[int], arguments: argparse.Namespace) -> list[str]:
    sampling = plan.sampling
    per_epoch = sampling.steps_per_epoch
    rows = {
        "records": f"{sampling.examples}, each in a batch with probability {sampling.rate:.4g}",
        "steps": f"{plan.steps} = {plan.epochs} local epochs of {per_epoch}",
        "noise": f"{plan.noise:g} times the clipping norm",
        "privacy": f"ε = {plan.epsilon:.4g} at δ = {plan.delta:g}",
    }
    if rounds:
        most = " + ".join(map(str, rounds))
        doubles = " if T doubles whenever it can" if len(set(rounds)) > 1 else ""
        rows["rounds"] = f"{len(rounds)}: {most} local epochs{doubles}"
    # Rounded up: a budget that is a hair too small would end the last epoch one step early.
    budget = math.ceil(plan.epsilon * 1000) / 1000 if arguments.epsilon is None else arguments.epsilon
    rows["use"] = f"PrivateTraining(noise={plan.noise:g}, delta={plan.delta:g}, budget={budget:g})"
    return [f"{name:8} {text}" for name, text in rows.items()]
