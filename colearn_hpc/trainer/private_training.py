"""PrivateTraining: the training inside a site as DP-SGD, so that its model tells little about any one record.

Opacus takes a gradient for each record, clips it, and adds noise to their sum. Lightning keeps its optimizers, its
loops and its checkpoints. The page "Privacy" of the documentation says what is guaranteed and what is not.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import LBFGS, Optimizer

import colearn_hpc._lightning as pl
from colearn_hpc._lightning import Callback, DDPStrategy, kinds
from colearn_hpc.algorithm.shared_model import float_buffers
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.privacy.accountant import Accountant, check_delta
from colearn_hpc.privacy.opacus_import import import_opacus
from colearn_hpc.privacy.sampling import PoissonBatches, private_loader
from colearn_hpc.privacy.site_random import Noise, new_key
from colearn_hpc.trainer.lightning_gaps import callbacks_of

log = logging.getLogger("colearn_hpc")


class PrivateDDPStrategy(DDPStrategy):
    """DDP for a site of several ranks under :class:`PrivateTraining`: ``Trainer(strategy=PrivateDDPStrategy())``.

    PyTorch's DDP would average gradients in backward, before they are clipped. Here the optimizer adds up what the
    ranks have clipped, so that only equal weights at the start are left to do.
    """

    def configure_ddp(self) -> None:
        from opacus.distributed import DifferentiallyPrivateDistributedDataParallel

        self.model = DifferentiallyPrivateDistributedDataParallel(self.model)


class PrivateTraining(Callback):
    """DP-SGD (Abadi et al. 2016, arXiv 1607.00133) by Opacus: a callback, listed before CoLearning.

    Batches are drawn by Poisson sampling. Their expected size is the DataLoader's batch size. The noise comes from a
    key that the operating system gives. The key is kept in this callback's state, hence in the site's resume points,
    and nowhere else. So a resumed run has the bits of one that was not interrupted, and two starts of one configuration
    have different noise.

    The loss must be a mean of losses of single records. A loss that compares records with each other, or divides by a
    weight of the whole batch, breaks the guarantee: clipping then does not bound what one record does.

    Args:
        noise: σ, the standard deviation of the noise in units of ``clip``. `colearn-hpc privacy plan` finds it.
        clip: C, the L2 norm to which each record's gradient is clipped.
        delta: δ of the guarantee; well below 1 / examples.
        budget: the ε that the whole run may spend. Training stops before the step that would pass it.
        replace_layers: True: BatchNorm, which mixes records, becomes GroupNorm, and layers without gradients for
            single records (LSTM, attention) become Opacus' own. False: such layers are refused.

    Raises:
        ConfigurationError: a number is out of its range. Before the first step also: DP-SGD cannot keep its promise
            with this Trainer, model, optimizer or DataLoader.
    """

    def __init__(
        self,
        noise: float,
        clip: float = 1.0,
        delta: float = 1e-5,
        budget: float = 8.0,
        replace_layers: bool = False,
    ) -> None:
        for name, value in (("noise", noise), ("clip", clip), ("budget", budget)):
            if not 0 < value < float("inf"):
                raise ConfigurationError(f"PrivateTraining({name}={value!r}): must be a number above 0")
        import_opacus()
        self.noise, self.clip, self.delta, self.budget = noise, clip, delta, budget
        self.replace_layers = replace_layers
        self.accountant = Accountant(delta)
        self._key = b""
        self._weights = b""  # digest of those from which this local epoch began
        self._buffers: dict[str, Tensor] = {}  # that are averaged, as they were before the epoch's first step
        self._hooks: Any = None  # Opacus' GradSampleHooks, while fitting
        self._sampler: PoissonBatches | None = None
        self._steps_allowed = 0  # over the whole run

    # --- what others ask ------------------------------------------------------------------------------

    def epsilon(self) -> float:
        """ε spent so far, at ``delta``."""
        return self.accountant.epsilon()

    def epochs_left(self, steps_per_epoch: int) -> int:
        """How many more whole local epochs of ``steps_per_epoch`` steps the budget allows. From ``on_fit_start`` on."""
        return max(self._steps_allowed - self.accountant.steps, 0) // steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one local epoch. From ``on_fit_start`` on."""
        assert self._sampler is not None, "on_fit_start makes it"
        return len(self._sampler)

    def terms(self) -> dict[str, str]:
        """What this data center promises, for the run's contract."""
        text = f"noise {self.noise:g}, clip {self.clip:g}, δ {self.delta:g}, ε up to {self.budget:g}"
        return {"differential privacy": text}

    # --- Lightning's hooks, in the order in which they run --------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.replace_layers:  # at every stage, for the weights of a checkpoint must fit
            replace_layers(pl_module)
        if stage == "fit":
            _check_trainer(trainer, pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.teardown(trainer, pl_module, "fit")  # an attempt that failed before this one
        _check_layers(pl_module)
        optimizer = _only_optimizer(trainer, pl_module)
        self._key = trainer.strategy.broadcast(self._key or new_key())
        self._sampler = self._draw_privately(trainer)
        sampling = self._sampler.sampling
        check_delta(self.delta, sampling.examples)
        left = self.accountant.steps_left(self.budget, self.noise, sampling.rate)
        self._steps_allowed = self.accountant.steps + left
        self._hooks = _grad_sample_hooks(pl_module)
        # The first layer's input is data, which needs no gradient.
        warnings.filterwarnings("ignore", "Full backward hook is firing when gradients are computed with respect to")
        trainer.optimizers = [self._private(optimizer, trainer.world_size)]
        if not left:
            self._stop(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Where a run is resumed in the middle of an epoch, the digest of the epoch's start comes with the state.
        if batch_idx == 0:
            self._weights = _digest(pl_module)
            self._buffers = {name: buffer.clone() for name, buffer in float_buffers(pl_module)}

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        assert self._sampler is not None, "on_fit_start makes it"
        if self._spent:
            raise ConfigurationError(
                f"the privacy budget ε={self.budget:g} allows {self._steps_allowed} steps, and the Trainer goes on; "
                "leave out min_epochs and min_steps, or choose a larger budget or more noise"
            )
        for name, buffer in float_buffers(pl_module) if self._buffers else ():
            if not torch.equal(buffer, self._buffers[name]):
                raise ConfigurationError(
                    f"buffer {name} changes in training, and would be averaged without noise; keep it in a plain "
                    "attribute, or leave out the layer"
                )
        self._buffers.clear()  # once an epoch will do
        for name, parameter in pl_module.named_parameters():
            if not parameter.requires_grad:
                continue
            grad_sample: Tensor | None = getattr(parameter, "grad_sample", None)
            if grad_sample is None:
                raise ConfigurationError(
                    f"parameter {name} got no gradient for single records in this step; freeze it, or use it in the "
                    "forward of a submodule of its own in every training_step"
                )
            if self.accountant.steps in self._sampler.stand_ins:
                parameter.grad_sample = grad_sample[:0]  # type: ignore[attr-defined]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._spent:
            self._stop(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        log.info("privacy: ε=%.4f at δ=%g after %d steps", self.epsilon(), self.delta, self.accountant.steps)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._hooks is not None:
            self._hooks.cleanup()
            self._hooks = None

    def state_dict(self) -> dict[str, Any]:
        # As text: torch does not load bytes with weights_only=True.
        return {"key": self._key.hex(), "weights": self._weights.hex(), "accountant": self.accountant.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._key, self._weights = bytes.fromhex(state_dict["key"]), bytes.fromhex(state_dict["weights"])
        self.accountant.load_state_dict(state_dict["accountant"])

    # --- small things ---------------------------------------------------------------------------------

    @property
    def _spent(self) -> bool:
        """Whether one more step would pass the budget."""
        return self.accountant.steps >= self._steps_allowed

    def _stop(self, trainer: pl.Trainer) -> None:
        if not trainer.should_stop:
            log.warning(
                "privacy: ε=%.4f is spent, one more step would pass the budget of %g: training stops after %d steps",
                self.epsilon(),
                self.budget,
                self.accountant.steps,
            )
        trainer.should_stop = True

    def _draw_privately(self, trainer: pl.Trainer) -> PoissonBatches:
        """Put Poisson batches in place of the training loader's own; returns their sampler."""
        # Lightning 2.6 has no public place between train_dataloader() and the loop that asks it.
        source = trainer.fit_loop._data_source
        steps_done = lambda: self.accountant.steps  # noqa: E731
        place = trainer.world_size, trainer.global_rank
        source.instance, sampler = private_loader(source.dataloader(), self._key, steps_done, *place)
        return sampler

    def _private(self, optimizer: Optimizer, ranks: int) -> Optimizer:
        """The optimizer with clipping and noise around it. Its state stays where it was: clearing that is enough."""
        from colearn_hpc.privacy.dp_optimizer import SiteDistributedDPOptimizer, SiteDPOptimizer

        assert self._sampler is not None, "on_fit_start makes it"
        sampling, ranks_batch = self._sampler.sampling, self._sampler.batch_size
        settings = repr((self.noise, self.clip, sampling.examples, sampling.batch)).encode()
        private = (SiteDistributedDPOptimizer if ranks > 1 else SiteDPOptimizer)(
            optimizer,
            noise_of_step=lambda: Noise(self._key, self.accountant.steps, self._weights + settings),
            noise_multiplier=self.noise,
            max_grad_norm=self.clip,
            expected_batch_size=ranks_batch,
        )
        private.attach_step_hook(lambda _: self.accountant.step(self.noise, sampling.rate))
        return private


def _check_trainer(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Refuse what would make DP-SGD something else.

    Raises:
        ConfigurationError: with the setting and what to do.
    """
    schedulers = kinds("callbacks", "GradientAccumulationScheduler")
    scheduled = any(isinstance(callback, schedulers) for callback in callbacks_of(trainer))
    alone = () if trainer.world_size > 1 else kinds("strategies", "SingleDeviceStrategy")
    strategies = (PrivateDDPStrategy, *alone)
    for wrong, found, todo in (
        (
            not module.automatic_optimization,
            "manual optimization",
            "let Lightning step the optimizer (automatic_optimization=True)",
        ),
        (
            trainer.gradient_clip_val is not None,
            f"Trainer(gradient_clip_val={trainer.gradient_clip_val})",
            "leave it out: PrivateTraining(clip=...) clips each record's gradient",
        ),
        (
            trainer.accumulate_grad_batches != 1 or scheduled,
            "accumulated gradients",
            "leave accumulate_grad_batches out, and take a larger batch_size for larger batches",
        ),
        (
            trainer.precision not in ("32-true", "64-true", "bf16-mixed"),
            f"Trainer(precision={trainer.precision})",
            "take 32-true or bf16-mixed: a scaled loss would be clipped as if it were the loss",
        ),
        (bool(trainer.overfit_batches), "Trainer(overfit_batches)", "use limit_train_batches"),  # type: ignore[attr-defined]
        (
            bool(trainer.reload_dataloaders_every_n_epochs),  # type: ignore[attr-defined]
            "Trainer(reload_dataloaders_every_n_epochs)",
            "leave it out: the data of a run stay the same",
        ),
        (
            not isinstance(trainer.strategy, strategies),
            f"Trainer(strategy={type(trainer.strategy).__name__})",
            "take strategy=PrivateDDPStrategy() for a site of several ranks, and none for one rank",
        ),
    ):
        if wrong:
            raise ConfigurationError(f"PrivateTraining does not go with {found}; {todo}")


def _only_optimizer(trainer: pl.Trainer, module: pl.LightningModule) -> Optimizer:
    """The module's optimizer; Lightning has refused several.

    Raises:
        ConfigurationError: it makes several evaluations a step, or does not train all that is trainable.
    """
    (optimizer,) = trainer.optimizers
    if isinstance(optimizer, LBFGS):
        raise ConfigurationError(
            "PrivateTraining does not go with LBFGS, which evaluates the loss several times a step; use SGD or Adam"
        )
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter not in trained:
            raise ConfigurationError(
                f"parameter {name} is trainable, but not in the optimizer; freeze it, or give it to the optimizer"
            )
    return optimizer


def _check_layers(module: pl.LightningModule) -> None:
    """Refuse layers in which one record changes what another one does, or that give no gradients for single records.

    Raises:
        ConfigurationError: naming the layer.
    """
    from opacus.validators import ModuleValidator

    for name, layer in module.named_modules():
        trainable = any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
        unsupported = trainable and ModuleValidator.VALIDATORS.get(type(layer), lambda _: [])(layer)
        # Opacus looks at trainable layers only; a BatchNorm without parameters mixes records as well.
        if unsupported or isinstance(layer, _BatchNorm):
            raise ConfigurationError(
                f"layer {name} ({type(layer).__name__}) mixes the records of a batch, or gives no gradients for "
                "single records; set PrivateTraining(replace_layers=True), or use another (GroupNorm for BatchNorm)"
            )


def _grad_sample_hooks(module: pl.LightningModule) -> Any:
    """Have every parameter keep a gradient for each record, as ``grad_sample``.

    By hooks: Opacus' GradSampleModule is a wrapper, under which every parameter would have another name.

    Raises:
        ConfigurationError: a trainable layer has buffers, which Opacus does not take.
    """
    from opacus.grad_sample import GradSampleHooks

    try:
        hooks = GradSampleHooks(module)
    except NotImplementedError as error:
        raise ConfigurationError(
            f"Opacus does not take this model: {error}; keep buffers in layers without trainable parameters"
        ) from error
    hooks.forbid_grad_accumulation()
    return hooks


def replace_layers(module: pl.LightningModule) -> None:
    """Put Opacus' replacements in place of layers that it has one for: GroupNorm for BatchNorm, its own LSTM."""
    import_opacus()
    from opacus.validators import ModuleValidator

    for name, child in module.named_children():
        if any(type(layer) in ModuleValidator.FIXERS for layer in child.modules()):
            setattr(module, name, ModuleValidator.fix(child))


def _digest(module: pl.LightningModule) -> bytes:
    """Of all weights, 32 bytes."""
    digest = hashlib.blake2b(digest_size=32)
    for parameter in module.parameters():
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
