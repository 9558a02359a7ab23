"""The paper's equations. Pure: numbers and tensors in, numbers and tensors out. See README.md here."""

from colearn_hpc.algorithm.learning_rate import ConstantLR, CyclicalLR, EpochPosition, ExponentialLR
from colearn_hpc.algorithm.local_epochs import FixedEpochs, IncreasingEpochs, QuadraticEpochs, RoundOutcome
from colearn_hpc.algorithm.outer import OuterSGD

__all__ = [
    "ConstantLR",
    "CyclicalLR",
    "EpochPosition",
    "ExponentialLR",
    "FixedEpochs",
    "IncreasingEpochs",
    "OuterSGD",
    "QuadraticEpochs",
    "RoundOutcome",
]
