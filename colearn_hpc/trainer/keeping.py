"""A kept model (LAWA): what is evaluated and saved after a round is another model than the one that is trained on.

a round's last batch        the mean becomes the shared model, as ever; the module becomes the kept model
validation, checkpoints     see the kept model; `shared.ckpt` is it
the epoch's end             the module becomes the shared model again
the run's end               the module becomes the kept model: it is the result
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from colearn_hpc._lightning import LightningModule
from colearn_hpc.protocol.settings import Settings
from colearn_hpc.trainer.averager import MeanResult
from colearn_hpc.trainer.averaging import MeanAverager
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.round_end import RoundEnd
from colearn_hpc.trainer.sums import WholeSums


class KeptModelAverager(MeanAverager):
    """A :class:`~colearn_hpc.trainer.averaging.MeanAverager` that shows the kept model until :meth:`show_local`.

    Args:
        place: this process's.
        settings: of the run.
    """

    def __init__(self, place: Place, settings: Settings, sums: WholeSums | None = None) -> None:
        super().__init__(place, settings, sums)
        self._state: Tensor | None = None  # of the rule; on leaders
        self._kept: Tensor | None = None
        self._shared: Tensor | None = None  # while the module is the kept model

    def take(self, end: RoundEnd) -> MeanResult:
        found = super().take(end)
        model = self.shared.model_of(end.module)
        self._shared = model.pack()
        if self._place.center.is_leader:
            self._kept, self._state = self._settings.kept_model.keep(self._shared, self._state)
        else:
            self._kept = model.staging(model.size)
        assert self._kept is not None
        self._place.site.copy_to_all([self._kept])
        model.unpack(self._kept)
        return found

    def show_local(self, module: LightningModule) -> None:
        """Make the module the shared model again."""
        if self._shared is not None:
            self.shared.sent_model_of(module).unpack(self._shared)
            self._shared = None

    def show_result(self, module: LightningModule) -> None:
        if self._kept is not None:
            self.shared.sent_model_of(module).unpack(self._kept)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"keeping": self._state, "kept": self._kept, "shared": self._shared}

    def handed_on(self) -> dict[str, Any]:
        return super().handed_on() | {"keeping": self._state, "kept": None, "shared": None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._state, self._kept, self._shared = state["keeping"], state["kept"], state["shared"]
