"""Where this process is in the run, and how it reaches the others: made once, handed to whoever needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from colearn_hpc.between import Between, TensorSite
from colearn_hpc.join import DataCenter, connect
from colearn_hpc.protocol import pacing
from colearn_hpc.protocol.conversation import Conversation
from colearn_hpc.protocol.journal import Remembered
from colearn_hpc.trainer.means import Means
from colearn_hpc.trainer.process_group import prepare_error_handling


@dataclass(frozen=True)
class Place:
    """This process's place.

    Attributes:
        center: its data center.
        site: inside it.
        between: between the data centers; the journal, as whoever sends and meets sees it.
        journal: what a restart may have to replay.
        conversation: the words.
        means: the tensors.
    """

    center: DataCenter
    site: TensorSite
    between: Between
    journal: Remembered
    conversation: Conversation
    means: Means

    @classmethod
    def of(
        cls,
        center: DataCenter,
        lanes: int | None = 1,
        patience: float | None = None,
        may_miss: bool = False,
        failed: Callable[[], str] | None = None,
        share_tracebacks: bool = False,
        membership: Any = None,
        sharded: bool = False,
        device: torch.device | None = None,
    ) -> Place:
        """Reach the others. Collective over the world.

        Args:
            center: this process's data center.
            lanes: ranks of each data center that share the transfer of a mean; None: one per node.
            patience: seconds to wait for other data centers; None: for ever.
            may_miss: whether a round may be taken without a data center that does not arrive in time.
            failed: what this rank has to tell, where it has failed: then it does not wait for ever until all are here.
            share_tracebacks: what an exception says is told to other data centers.
            membership: this MPI world is one site of that federation; None: all data centers are in this world.
            sharded: every rank holds a shard of the model, and carries it.
            device: where this rank's model lies, and from where it is sent; None: models travel through host memory.

        Raises:
            ConfigurationError: on all ranks, when there cannot be so many lanes, or models cannot be sent from there.
        """
        if device is not None:
            prepare_error_handling()  # the leaders may get a group of NCCL
        grace = None if failed is None else pacing.GRACE
        connection = connect(center, lanes, grace, failed or (lambda: ""), membership, sharded, device)
        journal = Remembered(connection.between)
        means = Means(connection.site, journal, patience, sharded, device)
        conversation = Conversation(connection.site, journal, patience, may_miss, means.advance, share_tracebacks)
        return cls(center, connection.site, journal, journal, conversation, means)

    @property
    def alone(self) -> bool:
        """Whether there is no other data center."""
        return len(self.between.names) == 1

    @property
    def doing(self) -> str:
        """What this rank waits in: "waiting" for others or "exchanging"; nothing where it does not wait."""
        return "exchanging" if self.means.waiting else "waiting" if self.conversation.waiting else ""

    @property
    def can_begin_again(self) -> bool:
        """Whether a restart from the last resume point would find its way."""
        return self.journal.complete and self.conversation.can_begin_again

    def regroup(self, content: object, patience: float | None = None) -> list[object]:
        """:meth:`Conversation.regroup`, and no more is replayed."""
        self.journal.stop_replay()
        return self.conversation.regroup(content, patience)
