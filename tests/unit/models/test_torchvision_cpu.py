"""The broken torchvision, imitated and (where installed) real; in a fresh process each, as imports happen once."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

# What torchvision 0.28 does: tolerate a library that does not load, then register fake kernels for its operators.
IMITATION = """
import pathlib, torch, torch.library
try:
    torch.ops.load_library(str(pathlib.Path(__file__).parent / "_C.so"))
except OSError:
    pass
@torch.library.register_fake("torchvision::nms")
def _(dets, scores, iou_threshold): ...
@torch.library.register_fake("torchvision::qnms")
def _(dets, scores, iou_threshold): ...
"""


def run(code, path=None):
    lines = f"import sys; sys.path.insert(0, {str(path)!r})\n{code}" if path else code
    return subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=120)


@pytest.fixture
def broken(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(IMITATION)
    (package / "_C.so").write_bytes(b"not a library for this torch")
    return tmp_path


REPAIR = "from colearn_hpc._torchvision import make_torchvision_importable as make\n"


def test_the_imitation_is_as_broken_as_the_original(broken):
    assert "operator torchvision::nms does not exist" in run("import torchvision", broken).stderr


def test_a_broken_torchvision_imports_afterwards(broken):
    done = run(REPAIR + "print(make(), make())\nimport torchvision", broken)
    assert (done.returncode, done.stdout.split()) == (0, ["True", "False"]), done.stderr


def test_the_library_leaves_it_as_it_is(broken):
    """Only the command line repairs it, for itself."""
    done = run("import colearn_hpc.models\ncolearn_hpc.models.network_names\nimport torchvision", broken)
    assert "operator torchvision::nms does not exist" in done.stderr


def test_nothing_is_touched_without_a_broken_one(broken):
    (broken / "torchvision" / "_C.so").unlink()
    done = run(REPAIR + "print(make(), 'torch' in sys.modules)", broken)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_importing_the_models_package_takes_no_torch():
    done = run("import sys, colearn_hpc.models\nprint('torch' in sys.modules)")
    assert done.stdout.split() == ["False"], done.stderr


@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision (extra 'timm') is not installed")
def test_the_real_one():
    done = run(REPAIR + "make()\nimport torchvision.transforms.v2, torchmetrics, pytorch_lightning")
    assert done.returncode == 0, done.stderr
