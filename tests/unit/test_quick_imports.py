"""What the quick imports leave behind; in a fresh process each, as imports happen once."""

import subprocess
import sys

import pytest

QUICKLY = "from colearn_hpc._quick_imports import import_quickly; import_quickly()\n"


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
from colearn_hpc import _quick_imports
with _quick_imports._stand_ins(["scipy.signal"]):
    import scipy.signal
    from scipy.signal import convolve
    from scipy.signal.windows import hamming
    class Filter(scipy.signal.dlti): pass
assert "scipy.signal" not in vars(scipy)
import scipy.signal
assert Filter.__mro__[1] is scipy.signal.dlti and hamming(3).size == 3
assert isinstance(scipy.signal.dlti(1, 2), scipy.signal.dlti)
print(convolve([1], [2]), scipy.signal.windows.hamming(3).size)
"""
    assert run(code) == "[2] 3"


def test_metrics_draw_and_look_at_pictures():
    """matplotlib and torchvision are not there, and are when a metric needs them."""
    code = """
import os
os.environ["MPLBACKEND"] = "agg"
left_out = not {"matplotlib", "torchvision"} & set(sys.modules)
import torch, torchmetrics
metric = torchmetrics.MeanMetric()
metric.update(torch.ones(3))
figure, axes = metric.plot()
import matplotlib.figure
from torchmetrics.functional.image.arniqa import transforms
normalize = transforms.Normalize([0.0], [2.0])
import torchvision
assert type(normalize) is torchvision.transforms.Normalize and isinstance(figure, matplotlib.figure.Figure)
print(left_out, normalize(torch.ones(1, 1, 1)).item())
"""
    assert run(QUICKLY + code) == "True 0.5"


STEP = """
import torch
def step():
    model = torch.nn.Linear(2, 2)
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        optimizer = kind(model.parameters(), lr=0.1)
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    return sum(p.sum() for p in model.parameters()).isfinite().item()
def there():
    return "torch._dynamo.eval_frame" in sys.modules
"""


def test_a_step_is_taken_without_the_compiler():
    code = """
from torch.nn.parallel import DistributedDataParallel
from pytorch_lightning.utilities.compile import from_compiled
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
DistributedDataParallel(torch.nn.Linear(2, 2))(torch.ones(1, 2)).sum().backward()
print(step(), there(), "sympy" in sys.modules)
"""
    assert run(QUICKLY + STEP + code) == "True False False"


@pytest.mark.parametrize(
    "ask",
    [
        "import torch._dynamo.config",
        "from torch._dynamo import config",
        "from torch._dynamo.utils import get_optimize_ddp_mode; assert get_optimize_ddp_mode() == 'ddp_optimizer'",
        "torch._dynamo.trace_rules.get_legacy_mod_inlinelist",
        "torch._dynamo.reset()",
    ],
)
def test_the_compiler_comes_when_it_is_asked_for(ask):
    code = f"""
from lightning_fabric.wrappers import OptimizedModule
first = step(), there(), isinstance(torch.nn.Linear(2, 2), OptimizedModule)
{ask}
import torch._dynamo.config, torch._dynamo.eval_frame
assert torch._dynamo is sys.modules["torch._dynamo"] and torch._dynamo.__spec__.name == "torch._dynamo"
assert torch._dynamo.config is sys.modules["torch._dynamo.config"]
assert torch._dynamo.config.__spec__.loader.get_filename("torch._dynamo.config") == torch._dynamo.config.__file__
assert torch._dynamo.utils.config is torch._dynamo.config
model = torch.compile(torch.nn.Linear(2, 2), backend="eager")
assert isinstance(model, OptimizedModule) and not isinstance(torch.nn.Linear(2, 2), OptimizedModule)
assert torch.optim.SGD(model.parameters(), lr=0.1).state_dict()
print(*first, model(torch.ones(1, 2)).shape, step())
"""
    assert run(QUICKLY + STEP + code) == "True False False torch.Size([1, 2]) True"


def test_garbage_is_collected_again_but_for_what_was_imported():
    assert run(QUICKLY + "print(gc.isenabled(), gc.get_freeze_count() > 10**5)") == "True True"


def test_nothing_of_the_users_is_kept():
    """He had torch already, and so maybe tensors in a cycle."""
    code = "import torch\ngc.disable()\n" + QUICKLY + "print(gc.isenabled(), gc.get_freeze_count())"
    assert run(code) == "False 0"


def test_names_without_lightning_take_no_torchmetrics():
    assert run("from colearn_hpc import CyclicalLR; print('torchmetrics' in sys.modules)") == "False"
