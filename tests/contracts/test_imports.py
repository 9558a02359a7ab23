"""Importing the package changes nothing in the process: the command line may, a library may not."""

import subprocess
import sys

import pytest

SCRIPT = """
import atexit, gc, logging, os, signal, sys
{first}
def state():
    return {{
        "environment": dict(os.environ),
        "excepthook": sys.excepthook,
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)],
        "logging": (list(logging.getLogger().handlers), logging.getLogger("colearn_hpc").handlers[:]),
    }}
import pytorch_lightning, torch, torchmetrics, scipy.signal, numpy  # what they do is their own business
kept, handlers = scipy.signal, atexit._ncallbacks()
before = state()
{statement}
changed = [key for key, value in state().items() if before[key] != value]
changed += ["scipy.signal"] if sys.modules["scipy.signal"] is not kept else []
changed += ["atexit"] if atexit._ncallbacks() != handlers else []
print(changed)
"""
REPAIR = "from colearn_hpc._torchvision import make_torchvision_importable as repair; repair()"
EVERYTHING = "import colearn_hpc; [getattr(colearn_hpc, name) for name in colearn_hpc.__all__]"


def changed_by(statement: str) -> list[str]:
    script = SCRIPT.format(first=REPAIR, statement=statement)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return eval(done.stdout.splitlines()[-1])


def test_importing_all_public_names_changes_nothing():
    assert changed_by(EVERYTHING + "; import colearn_hpc.trainer.signals, colearn_hpc.trainer.progress") == []


@pytest.mark.exhaustive(sample=2)
@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("os.environ['X_COLEARN'] = '1'", "environment"),
        ("sys.excepthook = print", "excepthook"),
        ("gc.freeze()", "collector"),
        ("atexit.register(len, '')", "atexit"),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", "signals"),
    ],
)
def test_the_contract_can_fail(statement, what):
    assert changed_by(statement) == [what]
