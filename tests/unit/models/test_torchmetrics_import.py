"""What the quick import of torchmetrics leaves behind; in a fresh process each, as imports happen once."""

import subprocess
import sys

import pytest

QUICKLY = "from colearn_hpc._torchmetrics import import_torchmetrics; import_torchmetrics()\n"


def run(code):
    done = subprocess.run([sys.executable, "-c", f"import gc, sys\n{code}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "start",
    [
        QUICKLY.strip(),
        "from colearn_hpc.cli import main\ntry: main(['fit', '--help.trainer'])\nexcept SystemExit: pass",
    ],
)
def test_scipy_signal_comes_when_it_is_asked_for(start):
    checks = """
taken = "scipy.signal" in sys.modules
import scipy, scipy.signal
from torchmetrics.audio import PermutationInvariantTraining
assert scipy.signal.windows.hamming(3).size == 3 and sys.modules["scipy.signal"] is scipy.signal
print(taken, "torchmetrics" in sys.modules)
"""
    assert run(start + checks) == "False True"


def test_another_version_may_want_more_of_it():
    code = """
from colearn_hpc import _torchmetrics
with _torchmetrics._stand_in():
    import scipy.signal
    from scipy.signal import convolve
import scipy.signal
print(convolve is sys.modules["scipy.signal"].convolve, scipy.signal.windows.hamming(3).size)
"""
    assert run(code) == "True 3"


def test_garbage_is_collected_again_but_for_what_was_imported():
    assert run(QUICKLY + "print(gc.isenabled(), gc.get_freeze_count() > 10**5)") == "True True"


def test_nothing_of_the_users_is_kept():
    """He had torch already, and so maybe tensors in a cycle."""
    code = "import torch\ngc.disable()\n" + QUICKLY + "print(gc.isenabled(), gc.get_freeze_count())"
    assert run(code) == "False 0"


def test_names_without_lightning_take_no_torchmetrics():
    assert run("from colearn_hpc import CyclicalLR; print('torchmetrics' in sys.modules)") == "False"
