"""The paper's equations and their rivals. Pure: numbers and tensors in, numbers and tensors out. See README.md here."""

from colearn_hpc.algorithm.combine import Median, TrimmedMean, WeightedMean
from colearn_hpc.algorithm.kept_model import LatestMean
from colearn_hpc.algorithm.learning_rate import ConstantLR, CyclicalLR, EpochPosition, ExponentialLR, LinearLR, WarmUp
from colearn_hpc.algorithm.local_correction import FedProx, Scaffold
from colearn_hpc.algorithm.local_epochs import (
    AdaptiveEpochs,
    DecayingEpochs,
    FixedEpochs,
    IncreasingEpochs,
    InSteps,
    PlateauEpochs,
    PostLocalEpochs,
    QuadraticEpochs,
    RoundOutcome,
)
from colearn_hpc.algorithm.outer import DelayedNesterov, FedAdam, FedYogi, OuterSGD

__all__ = [
    "AdaptiveEpochs",
    "ConstantLR",
    "CyclicalLR",
    "DecayingEpochs",
    "DelayedNesterov",
    "EpochPosition",
    "ExponentialLR",
    "FedAdam",
    "FedProx",
    "FedYogi",
    "FixedEpochs",
    "InSteps",
    "IncreasingEpochs",
    "LatestMean",
    "LinearLR",
    "Median",
    "OuterSGD",
    "PlateauEpochs",
    "PostLocalEpochs",
    "QuadraticEpochs",
    "RoundOutcome",
    "Scaffold",
    "TrimmedMean",
    "WarmUp",
    "WeightedMean",
]
