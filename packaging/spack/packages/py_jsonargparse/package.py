"""A newer version than Spack's own recipe has (4.39)."""

from spack_repo.builtin.packages.py_jsonargparse.package import PyJsonargparse as Builtin

from spack.package import *


class PyJsonargparse(Builtin):
    """jsonargparse 4.46."""

    version("4.46.0", sha256="4c331448841fea9cb2b41bf99adbea70a63f82cac516f2f13030378b3d93c329")
