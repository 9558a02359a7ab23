"""Spack package; how to use it stands in packaging/README.md."""

import os

from spack_repo.builtin.build_systems.python import PythonPackage

from spack.package import *


class PyColearnHpc(PythonPackage):
    """Co-learning: one model over several data centers, with PyTorch Lightning and MPI."""

    homepage = "https://doi.org/10.1007/s11432-019-2705-2"
    url = f"file://{os.getcwd()}/colearn_hpc-0.2.0.tar.gz"  # the sdist, beside which Spack is called
    manual_download = True

    license("Apache-2.0")

    version("0.2.0")

    depends_on("py-setuptools@77:", type="build")

    with default_args(type=("build", "run")):  # as in setup.py
        depends_on("python@3.11:")
        depends_on("py-cloudpickle@3.0:")
        depends_on("py-h5py@3.10:~mpi")
        depends_on("py-jinja2@3.1:")
        depends_on("py-jsonargparse@4.40:+signatures")
        depends_on("py-matplotlib@3.8:")
        depends_on("py-mpi4py@4.0:")
        depends_on("py-numpy@1.26:")
        depends_on("py-packaging@23:")
        depends_on("py-pillow@10:")
        depends_on("py-pytorch-lightning@2.6.6:2.6")
        depends_on("py-pyyaml@6:")
        depends_on("py-rich@13.7:")
        depends_on("py-scikit-learn@1.4:")
        depends_on("py-safetensors@0.4:")
        depends_on("py-scipy@1.11:")
        depends_on("py-soundfile@0.12:")
        depends_on("py-tensorboard@2.15:")
        depends_on("py-torch@2.6:+distributed")
        depends_on("py-torchmetrics@1.4:")
        depends_on("py-tqdm@4.66:")
