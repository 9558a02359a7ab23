"""The two text networks of Table 4: a bidirectional GRU (the table's "LSTM") and a capsule network."""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.models.embedding import PADDING, build_embedding, lengths_of
from colearn_hpc.models.registry import register


@register("bigru")
class BiGRU(nn.Module):
    """Word vectors → SpatialDropout → bidirectional GRU → mean and maximum over time → one linear layer.

    185,286 parameters beside the vectors at 6 classes, 80 units and 300 dimensions; 333,318 at 128 units. The
    co-learning paper calls it "LSTM" and describes a bidirectional GRU (Mi et al. 2020, Table 4); the layers around it
    are those usual for the toxic-comment data. (Not in the paper: units, dropout, pooling.)

    Padding (token 0, at the end) takes part in nothing: a comment gives the same logits however far it is padded.

    Shapes: (batch, time) int64 tokens -> (batch, num_classes) logits.

    Args:
        num_classes: Length of the output row.
        embedding: File of word vectors, see :func:`~colearn_hpc.models.embedding.build_embedding`.
        vocabulary_size: Rows of the vectors; needed without a file.
        embedding_dim: Dimensions of the vectors; taken from the file where there is one.
        train_embedding: Whether training changes the vectors; by default exactly if they come from no file.
        hidden: Units of each direction.
        dropout: Probability that a dimension of the vectors is zero in a whole comment (SpatialDropout).

    Raises:
        ConfigurationError: The vectors cannot be had.
    """

    def __init__(
        self,
        num_classes: int = 6,
        embedding: str | None = None,
        vocabulary_size: int | None = None,
        embedding_dim: int = 300,
        train_embedding: bool | None = None,
        hidden: int = 80,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.embedding = build_embedding(embedding, vocabulary_size, embedding_dim, train_embedding)
        self.dropout = nn.Dropout1d(dropout)
        self.gru = nn.GRU(self.embedding.embedding_dim, hidden, batch_first=True, bidirectional=True)
        self.classifier = nn.Linear(4 * hidden, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens.long()
        lengths = lengths_of(tokens)
        vectors = self.embedding(tokens)
        vectors = self.dropout(vectors.transpose(1, 2)).transpose(1, 2)
        # Packed, so that the backward direction begins at the last word and not in the padding.
        packed = pack_padded_sequence(vectors, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)  # zeros behind each length
        behind = torch.arange(states.shape[1], device=states.device) >= lengths[:, None]
        mean = states.sum(dim=1) / lengths[:, None]
        maximum = states.masked_fill(behind[:, :, None], -torch.inf).amax(dim=1)
        return self.classifier(torch.cat([mean, maximum], dim=1))


def squash(x: Tensor, dim: int = -1) -> Tensor:
    """Vectors of the same direction, whose length l has become l² / (1 + l²).

    Source: Sabour et al. 2017, arXiv 1710.09829, eq. 1.

    Args:
        x: any shape.
        dim: the dimension along which the vectors lie.
    """
    square = x.square().sum(dim=dim, keepdim=True)
    # The gradient of a square root at 0 is infinite, and a capsule of zeros is ordinary behind a ReLU.
    return x * (square / (1 + square)) * torch.rsqrt(square + 1e-8)


class RoutedCapsules(nn.Module):
    """Dynamic routing by agreement (Sabour et al. 2017, arXiv:1710.09829, procedure 1).

    Shapes: (batch, inputs, in_dim) -> (batch, outputs, out_dim), lengths in [0, 1).

    Args:
        inputs: Number of input capsules.
        in_dim: Their dimension.
        outputs: Number of output capsules.
        out_dim: Their dimension.
        routings: Iterations r; 3 in the capsule paper.
    """

    def __init__(self, inputs: int, in_dim: int, outputs: int, out_dim: int, routings: int = 3) -> None:
        super().__init__()
        if routings < 1:
            raise ConfigurationError(f"routings={routings}: must be 1 or more")
        self.routings = routings
        self.weight = nn.Parameter(torch.empty(inputs, outputs, in_dim, out_dim))
        nn.init.normal_(self.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        votes = torch.einsum("bip,iopd->biod", x, self.weight)  # û
        # The couplings are found without a gradient through them, as in the authors' code; it flows through the votes.
        fixed = votes.detach()
        agreement = torch.zeros(votes.shape[:3], dtype=votes.dtype, device=votes.device)  # b
        for _ in range(self.routings - 1):
            output = squash(torch.einsum("bio,biod->bod", agreement.softmax(dim=2), fixed))
            agreement = agreement + torch.einsum("biod,bod->bio", fixed, output)
        return squash(torch.einsum("bio,biod->bod", agreement.softmax(dim=2), votes))


@register("text_capsule")
class TextCapsule(nn.Module):
    """Word vectors → convolution into 32 × 8 primary capsules → dynamic routing → a capsule of 16 per class.

    2,952,448 parameters beside the vectors at 6 classes, 100 tokens, kernel 9 and 300 dimensions. Capsule counts and
    dimensions are the co-learning paper's (Mi et al. 2020, Table 4), routing is Sabour et al. 2017's. (Not in the
    paper: kernel, number of tokens, routings, loss.)

    The score of a class is its capsule's length, in [0, 1): a probability, not a logit.

    Shapes: (batch, time) int64 tokens -> (batch, num_classes) probabilities. Each place has its own routing weights,
    so the time is fixed: longer comments are cut, shorter ones padded to ``length``.

    Args:
        num_classes: Number of class capsules.
        embedding: File of word vectors, see :func:`~colearn_hpc.models.embedding.build_embedding`.
        vocabulary_size: Rows of the vectors; needed without a file.
        embedding_dim: Dimensions of the vectors; taken from the file where there is one.
        train_embedding: Whether training changes the vectors; by default exactly if they come from no file.
        length: Tokens of a comment.
        kernel_size: Words that a primary capsule sees.
        capsules: Primary capsules at each place.
        capsule_dim: Their dimension.
        class_dim: Dimension of a class capsule.
        routings: Iterations of dynamic routing.
        dropout: Probability that a dimension of the vectors is zero in a whole comment.

    Raises:
        ConfigurationError: The vectors cannot be had, or ``length`` is shorter than ``kernel_size``.
    """

    output_kind: Literal["probabilities"] = "probabilities"

    def __init__(
        self,
        num_classes: int = 6,
        embedding: str | None = None,
        vocabulary_size: int | None = None,
        embedding_dim: int = 300,
        train_embedding: bool | None = None,
        length: int = 100,
        kernel_size: int = 9,
        capsules: int = 32,
        capsule_dim: int = 8,
        class_dim: int = 16,
        routings: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if length < kernel_size:
            raise ConfigurationError(f"length={length} is shorter than kernel_size={kernel_size}; make it longer")
        self.length = length
        self.capsule_dim = capsule_dim
        self.embedding = build_embedding(embedding, vocabulary_size, embedding_dim, train_embedding)
        self.dropout = nn.Dropout1d(dropout)
        self.primary = nn.Conv1d(self.embedding.embedding_dim, capsules * capsule_dim, kernel_size)
        places = length - kernel_size + 1
        self.classes = RoutedCapsules(places * capsules, capsule_dim, num_classes, class_dim, routings)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens.long()[:, : self.length]
        tokens = pad(tokens, (0, self.length - tokens.shape[1]), value=PADDING)
        vectors = self.dropout(self.embedding(tokens).transpose(1, 2))
        primary = self.primary(vectors).transpose(1, 2)  # (batch, places, capsules · dim)
        capsules = squash(primary.reshape(len(tokens), -1, self.capsule_dim))
        return cast(Tensor, self.classes(capsules)).norm(dim=2)
