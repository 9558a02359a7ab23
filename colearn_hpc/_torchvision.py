"""Makes the registry's torchvision importable beside a CPU build of torch.

The registry (PyPI) holds one torchvision per platform, and on Linux it is compiled against the CUDA build of torch.
Beside a CPU torch its extension library does not load; torchvision tolerates that, until it registers fake kernels
for two operators that only the extension would have defined: ``operator torchvision::nms does not exist``. timm
imports torchvision unconditionally, and torchmetrics and Lightning as soon as they find it, so all of them die.

Declaring the two operators before is enough: transforms, torchvision's models, timm, torchmetrics and Lightning then
work; calling ``nms`` itself still fails, as it must, for want of a kernel. Seen with torchvision 0.28.0, torch 2.13.0.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_MISSING = ("nms", "qnms")

# torch forgets the operators when their Library object is collected.
_library: Any = None


def make_torchvision_importable() -> bool:
    """Declare torchvision's missing operators if, and only if, its extension library does not load.

    To be called before the first import of timm, torchmetrics or Lightning. Costs nothing where torchvision is not
    installed or is already imported; otherwise one import of torch. Calling it again does nothing.

    Returns:
        Whether operators were declared by this call.
    """
    global _library
    if _library is not None or "torchvision" in sys.modules:
        return False
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    extension = Path(spec.origin).parent / "_C.so"
    if not extension.exists():
        return False

    import torch

    try:
        torch.ops.load_library(str(extension))
        return False
    except OSError:
        # FRAGMENT rather than DEF: the namespace is torchvision's, and somebody else may have had the same idea.
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in _MISSING:
            if not hasattr(torch.ops.torchvision, operator):
                _library.define(operator + _SCHEMA)
        return True
