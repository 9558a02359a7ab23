"""A newer version than Spack's own recipe has (2.4)."""

from spack_repo.builtin.packages.py_pytorch_lightning.package import PyPytorchLightning as Builtin

from spack.package import *


class PyPytorchLightning(Builtin):
    """PyTorch Lightning 2.6."""

    version(
        "2.6.1",
        sha256="ba08f8901cf226fcca473046ad9346f414e99117762dc869c76e650d5b3d7bdc",
        url="https://files.pythonhosted.org/packages/source/p/pytorch-lightning/pytorch_lightning-2.6.1.tar.gz",
    )
