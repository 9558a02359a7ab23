"""A newer version than Spack's own recipe has (2.4)."""

from spack_repo.builtin.packages.py_pytorch_lightning.package import PyPytorchLightning as Builtin

from spack.package import *


class PyPytorchLightning(Builtin):
    """PyTorch Lightning 2.6."""

    version(
        "2.6.6",
        sha256="52c52b20522dd3d3feb3bb3aae2dbe3f291e8e836d4111a74cfd72e9df018834",
        url="https://files.pythonhosted.org/packages/source/p/pytorch-lightning/pytorch_lightning-2.6.6.tar.gz",
    )
