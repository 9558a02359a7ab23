"""Everything that a user chooses, as one frozen value; every contradiction is refused here, in one table.

The callback and the command line both build :class:`Settings`, so what one refuses the other refuses too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from colearn_hpc.errors import ConfigurationError

OptimizerState: TypeAlias = Literal["reset", "keep", "average"]
OnFailure: TypeAlias = Literal["stop", "continue_without"]
ValidationMode: TypeAlias = Literal["round", "epoch", "lightning"]

_CHOICES = {
    "optimizer_state": ("reset", "keep", "average"),
    "weighting": ("uniform", "examples"),
    "combine": ("weights", "predictions"),
    "on_failure": ("stop", "continue_without"),
    "validation": ("round", "epoch", "lightning"),
    "sums": ("float64", "fixed32", "fixed64"),
}
_GROUPS = {"sums": "exchange: sums"}  # what a setting is called where it is not an argument of its own


@dataclass(frozen=True)
class Settings:
    """What a run was asked to do. ``dataclasses.replace`` checks again.

    Attributes:
        schedule: the learning-rate schedule; None: rates are the optimizer's own. Opaque here.
        rule: of the local epochs, or with ``unit = "steps"`` of the local steps. Opaque here.
        rounds: stop after so many; None: the Trainer's own limits end the run.
        learning_rate: base rate of all parameter groups; None: each group's own.
        optimizer_state: what happens to momenta at a round's end.
        weighting: of the data centers in the mean.
        combine: ``"weights"`` or ``"predictions"`` (ensemble-learning).
        combiner: how K vectors become one; None: eq. 2. Opaque here.
        outer_optimizer: what steps along the mean; None: the mean is the shared model. Opaque here.
        local_correction: what changes gradients before each optimizer step, with a method ``renewed`` where it has
            variates; None: nothing. Opaque here.
        local_layers: ``"batch_norm"`` or names of layers that stay in their data center; None: all are averaged.
        kept_model: which model is evaluated and saved; None: the shared one. Opaque here.
        codec: how parameters are written on the wire, with ``name`` and ``feedback``; None: as they are.
        sums: of what the mean is taken: float64 of the weights, or whole numbers of 32 or 64 bits of their steps.
        secure: masks hide each data center's whole numbers from all others; the sum alone can be known.
        share_metrics: with ``secure``, what a data center measures on its own data travels all the same.
        public_validation: with ``secure``, everyone may know the data on which the shared model is validated.
        overlap: the mean travels while the next round's first local epoch is trained.
        mixing: with ``overlap``, α of α w_k + (1 - α) w̄, from which training goes on when the mean is there; None: it
            goes on from w_k + (w̄ - s_k), see ``algorithm/overlap.py``.
        lanes: ranks of a data center that share the transfer; None: one per node.
        fragments: P parts of the model, of which a round's mean is one; None: a mean is of the whole model.
        device: models travel from device to device, and means are taken there; else in host memory.
        round_timeout: seconds to wait for another data center; None: for ever.
        restarts: how often in one round a data center that failed begins again.
        on_failure: what comes after that.
        resume_points: whether they are written.
        share_tracebacks: what an exception says is told to other data centers; each may decide for itself.
        federated: the data centers are sites of a federation, and share no MPI world.
        validation: when the validation loop runs, and monitors are asked.
        warmup_epochs, warmup_steps: of the run, at its beginning, with rates below the schedule's.

    Raises:
        ConfigurationError: a value is impossible, or two contradict each other.
    """

    schedule: Any
    rule: Any
    rounds: int | None = None
    learning_rate: float | None = None
    optimizer_state: OptimizerState = "reset"
    weighting: Literal["uniform", "examples"] = "uniform"
    combine: Literal["weights", "predictions"] = "weights"
    combiner: Any = None
    outer_optimizer: Any = None
    local_correction: Any = None
    local_layers: Literal["batch_norm"] | tuple[str, ...] | None = None
    kept_model: Any = None
    codec: Any = None
    sums: Literal["float64", "fixed32", "fixed64"] = "float64"
    secure: bool = False
    share_metrics: bool = False
    public_validation: bool = False
    overlap: bool = False
    mixing: float | None = None
    lanes: int | None = None
    fragments: int | None = None
    device: bool = False
    round_timeout: float | None = None
    restarts: int = 3
    on_failure: OnFailure = "stop"
    resume_points: bool = True
    share_tracebacks: bool = False
    federated: bool = False
    validation: ValidationMode = "round"
    warmup_epochs: int = 0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                called = _GROUPS.get(name, name)
                raise ConfigurationError(f"{called} must be one of {', '.join(choices)}; found {getattr(self, name)!r}")
        for name in ("secure", "share_metrics", "public_validation"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"privacy: {name} must be true or false; found {getattr(self, name)!r}")
        _check_whole("rounds", self.rounds, 1, or_none="None")
        _check_whole("restarts", self.restarts, 0)
        _check_whole("warmup_epochs", self.warmup_epochs, 0)
        _check_whole("warmup_steps", self.warmup_steps, 0)
        _check_whole("exchange: lanes", self.lanes, 1, or_none="null")
        _check_whole("exchange: fragments", self.fragments, 1, or_none="null")
        for name in ("overlap", "device"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"exchange: {name} must be true or false; found {getattr(self, name)!r}")
        if self.mixing is not None and (
            isinstance(self.mixing, bool) or not isinstance(self.mixing, (int, float)) or not 0 <= self.mixing < 1
        ):
            raise ConfigurationError(
                f"exchange: mixing must be a number, at least 0 and below 1, or null; found {self.mixing!r}"
            )
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ConfigurationError(
                f"learning_rate must be positive, or None for the optimizer's own; found {self.learning_rate}"
            )
        if self.round_timeout is not None and not self.round_timeout > 0:
            raise ConfigurationError(
                f"round_timeout must be a positive number of seconds, or None; found {self.round_timeout!r}"
            )
        if self.outer_optimizer is not None and not callable(getattr(self.outer_optimizer, "step", None)):
            raise ConfigurationError(
                f"outer_optimizer={self.outer_optimizer!r} has no `step(previous, mean, state)` method; use OuterSGD"
            )
        for name, method in (("local_correction", "correct"), ("kept_model", "keep")):
            if (found := getattr(self, name)) is not None and not callable(getattr(found, method, None)):
                known = "FedProx or Scaffold" if name == "local_correction" else "LatestMean"
                raise ConfigurationError(f"{name}={found!r} has no method `{method}`; use {known}")
        _check_layers(self.local_layers)
        for holds, text in CLASHES:
            if holds(self):
                rules = {"outer": self.outer_optimizer, "correction": self.local_correction, "kept": self.kept_model}
                raise ConfigurationError(text.format(s=self, **{key: describe(rule) for key, rule in rules.items()}))

    @property
    def in_steps(self) -> bool:
        """Whether T counts optimizer steps instead of local epochs."""
        return getattr(self.rule, "unit", "epochs") == "steps"

    @property
    def may_miss(self) -> bool:
        """Whether a round's mean may be taken without a data center that does not come."""
        return self.on_failure == "continue_without"

    @property
    def whole_numbers(self) -> bool:
        """Whether means are taken of whole numbers."""
        return self.sums != "float64"

    @property
    def hides_examples(self) -> bool:
        """Whether the numbers of examples are weights that nobody is told."""
        return self.secure and self.weighting == "examples"

    @property
    def transfer_lanes(self) -> int | None:
        """:attr:`lanes`, or 1 where only leaders can take part in the mean."""
        return 1 if self.federated or any(holds(self) for holds in _LEADERS_ALONE) else self.lanes

    def fingerprint(self) -> dict[str, str]:
        """What all data centers must have in common, as text."""
        new = {"local_correction": describe(self.local_correction), "kept_model": describe(self.kept_model)}
        new |= {"local_layers": str(self.local_layers), "overlap": str(self.overlap), "device": str(self.device)}
        new["validation"] = "None" if self.validation == "lightning" else self.validation
        new["fragments"] = str(self.fragments)
        new["mixing"] = str(self.mixing if self.mixing is None else float(self.mixing))
        new["warmup_steps"] = str(self.warmup_steps or None)
        new |= {name: str(getattr(self, name)) for name in ("secure", "share_metrics", "public_validation")}
        new |= {"sums": self.sums} if self.whole_numbers else {}
        # A run that an earlier version began knows nothing of them.
        return {key: text for key, text in new.items() if text not in ("None", "False")} | {
            "rounds": str(self.rounds),
            "schedule": describe(self.schedule),
            "local_epochs_rule": describe(self.rule),
            "learning_rate": str(self.learning_rate),
            "optimizer_state": self.optimizer_state,
            "weighting": self.weighting,
            "outer_optimizer": describe(self.outer_optimizer),
            "combine": self.combine if self.combiner is None else describe(self.combiner),
            "codec": codec_name(self),
            "on_failure": self.on_failure,
        }


def codec_name(settings: Settings) -> str:
    """The codec's name, as in ``exchange: {codec: name}``."""
    return "fp32" if settings.codec is None else str(settings.codec.name)


def describe(rule: Any) -> str:
    """A rule as text that is equal on all ranks: a default repr holds a memory address."""
    text = repr(rule)
    return f"{type(rule).__name__}({vars(rule)})" if " at 0x" in text else text


def _with_predictions(s: Settings) -> bool:
    return s.combine == "predictions"


def _with_outer(s: Settings) -> bool:
    return s.outer_optimizer is not None


def _with_correction(s: Settings) -> bool:
    return s.local_correction is not None


def _with_variates(s: Settings) -> bool:
    return callable(getattr(s.local_correction, "renewed", None))


def _with_kept(s: Settings) -> bool:
    return s.kept_model is not None


def _with_feedback(s: Settings) -> bool:
    return s.codec is not None and s.codec.feedback


def _several_lanes(s: Settings) -> bool:
    return s.lanes is not None and s.lanes > 1


def _secure(s: Settings) -> bool:
    return s.secure


def _in_fragments(s: Settings) -> bool:
    return s.fragments is not None


_LEADERS_ALONE = (_with_predictions, _with_outer, _with_feedback, _with_kept, _secure, _in_fragments)
_LEFT_OUT = (
    'on_failure="continue_without" goes on with the others\' mean, which {} does not allow: a data center that is left '
    'out has no part of it. Use on_failure="stop"'
)

_BETWEEN_SITES = ("bf16", "fp16", "int8")  # codecs that a coordinator knows too
_NOT_BETWEEN_SITES = "{} works inside one MPI world, and not yet between the sites of a federation; leave it out"

# What goes with no exchange: {device: true}: (whether it is there, what is said).
_NOT_ON_DEVICES: tuple[tuple[Callable[[Settings], bool], str], ...] = (
    (lambda s: s.codec is not None, 'codec="{s.codec.name}" is written for CPUs'),
    (lambda s: s.whole_numbers, "sums={s.sums} are written for CPUs"),
    (lambda s: s.combiner is not None, "combine={s.combiner} is written for CPUs"),
    (_with_predictions, 'with combine="predictions" no model travels'),
    (_with_correction, "local_correction={correction} keeps its vectors in host memory"),
    (_with_kept, "kept_model={kept} keeps its vectors in host memory"),
    (lambda s: s.overlap, "with overlap=True its sums would wait in the GPU's queue behind training's"),
    (_in_fragments, "fragments={s.fragments} are kept in host memory"),
)


def _and_on_device(holds: Callable[[Settings], bool]) -> Callable[[Settings], bool]:
    return lambda s: s.device and holds(s)


# What cannot be had together: (whether it holds, what is said). In the text, `s` is the Settings.
CLASHES: tuple[tuple[Callable[[Settings], bool], str], ...] = (
    (
        lambda s: s.learning_rate is not None and s.schedule is None,
        'schedule="none" leaves rates to the optimizer, but learning_rate={s.learning_rate} is set; drop one of the '
        'two (schedule="constant" holds a rate)',
    ),
    (
        lambda s: s.schedule is None and bool(s.warmup_epochs or s.warmup_steps),
        'schedule="none" leaves rates to the optimizer\'s own scheduler, but a warm-up is set (warmup_epochs='
        "{s.warmup_epochs}, warmup_steps={s.warmup_steps}); let that scheduler warm up, or drop schedule",
    ),
    (
        lambda s: bool(s.warmup_epochs and s.warmup_steps),
        "warmup_epochs={s.warmup_epochs} and warmup_steps={s.warmup_steps} are one thing in two units; drop one of the "
        "two",
    ),
    (
        lambda s: s.in_steps and bool(s.warmup_epochs),
        "warmup_epochs={s.warmup_epochs} counts local epochs, and with local_steps the run counts optimizer steps; use "
        "warmup_steps",
    ),
    (
        lambda s: _with_outer(s) and _with_predictions(s),
        'outer_optimizer steps from one shared model to the next, and with combine="predictions" there is none; drop '
        "one of the two",
    ),
    (
        lambda s: s.may_miss and s.optimizer_state == "average",
        _LEFT_OUT.format('optimizer_state="average"'),
    ),
    (
        lambda s: s.may_miss and _with_predictions(s),
        _LEFT_OUT.format('combine="predictions"'),
    ),
    (
        lambda s: s.may_miss and _with_outer(s),
        _LEFT_OUT.format("outer_optimizer={outer}"),
    ),
    (
        lambda s: s.combiner is not None and s.weighting == "examples",
        'combine={s.combiner} counts every data center once, and weighting="examples" does not; use '
        'weighting="uniform", or combine="weights"',
    ),
    (
        lambda s: s.codec is not None and _with_predictions(s),
        'exchange: codec={s.codec.name!r} is for weights on the wire, and with combine="predictions" none travel; drop '
        "one of the two",
    ),
    (
        lambda s: _several_lanes(s) and _with_predictions(s),
        'exchange: lanes={s.lanes} cannot be combined with combine="predictions": no weights travel. Drop one of the '
        "two",
    ),
    (
        lambda s: _several_lanes(s) and _with_outer(s),
        "exchange: lanes={s.lanes} cannot be combined with an outer_optimizer: its state is the leader's. Drop one of "
        "the two",
    ),
    (
        lambda s: _several_lanes(s) and _with_feedback(s),
        'exchange: lanes={s.lanes} cannot be combined with codec="{s.codec.name}": what its messages lack is the '
        "leader's to remember. Drop one of the two",
    ),
    (
        lambda s: s.mixing is not None and not s.overlap,
        "exchange: mixing={s.mixing} says what becomes of the epoch that is trained while a mean travels, and nothing "
        "is without overlap: true; set it too, or leave mixing out",
    ),
    (
        lambda s: s.overlap and _with_predictions(s),
        'exchange: overlap=True cannot be combined with combine="predictions": with it no weights travel. Drop one of '
        "the two",
    ),
    (
        lambda s: s.overlap and s.optimizer_state == "average",
        'exchange: overlap=True cannot be combined with optimizer_state="average": a correction of state that went on '
        'meanwhile may make a variance negative. Use "reset" or "keep"',
    ),
    (
        lambda s: s.overlap and s.may_miss,
        'exchange: overlap=True cannot be combined with on_failure="continue_without": while a mean is under way every '
        'data center is needed. Use "stop"',
    ),
    (
        lambda s: s.whole_numbers and s.codec is not None,
        'exchange: sums={s.sums} writes steps as whole numbers, and codec="{s.codec.name}" writes them in its own way; '
        "drop one of the two",
    ),
    (
        lambda s: s.whole_numbers and s.combiner is not None and not s.secure,
        "exchange: sums={s.sums} adds whole numbers up, and combine={s.combiner} is no sum; drop one of the two",
    ),
    (
        lambda s: s.secure and s.combiner is not None,
        "privacy: secure=True hides single models, and combine={s.combiner} has to see them to know which to trust; "
        "decide which of the two you need, and drop the other",
    ),
    (
        lambda s: s.whole_numbers and _with_predictions(s),
        'exchange: sums={s.sums} is for weights, and with combine="predictions" none travel; drop one of the two',
    ),
    (
        lambda s: s.sums == "fixed32" and s.optimizer_state == "average",
        'exchange: sums=fixed32 is too coarse for optimizer_state="average"; use sums=fixed64, or "reset" or "keep"',
    ),
    (
        lambda s: s.secure and not s.whole_numbers,
        "privacy: secure=True hides whole numbers, and exchange: sums={s.sums} are none; use fixed32 or fixed64, or "
        "leave sums out",
    ),
    (
        lambda s: s.secure and s.weighting == "examples" and s.sums == "fixed32",
        'privacy: secure=True with weighting="examples" would tell everyone how many examples each data center has; '
        'use exchange: sums=fixed64, which adds the numbers up under masks, or weighting="uniform"',
    ),
    (
        lambda s: s.secure and _several_lanes(s),
        "privacy: secure=True cannot be combined with exchange: lanes={s.lanes}: the vector that may be sent once more "
        "is the leader's to keep. Drop one of the two",
    ),
    (
        lambda s: s.secure and s.overlap,
        "privacy: secure=True cannot be combined with exchange: overlap=True: a resumed run would send a model whose "
        "sum has begun before it can say with whom. Drop one of the two",
    ),
    (
        lambda s: (s.share_metrics or s.public_validation) and not s.secure,
        "privacy: share_metrics and public_validation loosen secure=True, which is not set; without it all metrics "
        "travel. Set secure, or drop them",
    ),
    (
        lambda s: _with_correction(s) and _with_predictions(s),
        'local_correction={correction} pulls towards the shared model, and with combine="predictions" there is none; '
        "drop one of the two",
    ),
    (
        lambda s: _with_correction(s) and s.overlap,
        "exchange: overlap=True cannot be combined with local_correction={correction}: the shared model is not where a "
        "round begins. Drop one of the two",
    ),
    (
        lambda s: _with_variates(s) and s.may_miss,
        _LEFT_OUT.format("local_correction={correction}"),
    ),
    (
        lambda s: s.local_layers is not None and _with_predictions(s),
        'local_layers={s.local_layers} stay in their data center, and with combine="predictions" all layers do; drop '
        "one of the two",
    ),
    (
        lambda s: s.local_layers is not None and s.optimizer_state == "average",
        'local_layers={s.local_layers} stay in their data center, and optimizer_state="average" would mix their '
        'optimizer state; use "reset" or "keep"',
    ),
    (
        lambda s: _with_kept(s) and _with_predictions(s),
        'kept_model={kept} is made of shared models, and with combine="predictions" there are none; drop one of the '
        "two",
    ),
    (
        lambda s: _with_kept(s) and s.overlap,
        "exchange: overlap=True cannot be combined with kept_model={kept}: both show another model than is trained. "
        "Drop one of the two",
    ),
    (
        lambda s: _with_kept(s) and s.may_miss,
        _LEFT_OUT.format("kept_model={kept}"),
    ),
    (
        lambda s: _several_lanes(s) and _with_kept(s),
        "exchange: lanes={s.lanes} cannot be combined with kept_model={kept}: its state is the leader's. Drop one of "
        "the two",
    ),
    (
        lambda s: _in_fragments(s) and _with_predictions(s),
        'exchange: fragments={s.fragments} are parts of a model that travels, and with combine="predictions" none '
        "does; drop one of the two",
    ),
    (
        lambda s: _in_fragments(s) and s.optimizer_state == "average",
        "exchange: fragments={s.fragments} averages one part of the model at a time, and "
        'optimizer_state="average" the state of all of it; use "keep" or "reset"',
    ),
    (
        lambda s: _in_fragments(s) and s.may_miss,
        _LEFT_OUT.format("exchange: fragments={s.fragments}"),
    ),
    (
        lambda s: _in_fragments(s) and s.whole_numbers,
        "exchange: fragments={s.fragments} cannot be combined with sums={s.sums}, whose scales are those of a whole "
        "model's last step; leave one of the two out (privacy: secure=True needs the sums)",
    ),
    (
        lambda s: _in_fragments(s) and _with_correction(s),
        "exchange: fragments={s.fragments} cannot be combined with local_correction={correction}: a round begins from "
        "no shared model to which it could pull. Drop one of the two",
    ),
    (
        lambda s: _in_fragments(s) and _with_kept(s),
        "exchange: fragments={s.fragments} cannot be combined with kept_model={kept}: both show another model than is "
        "trained. Drop one of the two",
    ),
    (
        lambda s: _in_fragments(s) and _several_lanes(s),
        "exchange: lanes={s.lanes} cannot be combined with fragments={s.fragments}: the last means of all fragments "
        "are the leader's. Drop one of the two",
    ),
    (
        lambda s: s.federated and _in_fragments(s),
        _NOT_BETWEEN_SITES.format("exchange: fragments={s.fragments}"),
    ),
    (
        lambda s: s.federated and _with_predictions(s),
        _NOT_BETWEEN_SITES.format('combine="predictions"'),
    ),
    (
        lambda s: s.federated and s.combiner is not None,
        _NOT_BETWEEN_SITES.format("combine={s.combiner}"),
    ),
    (
        lambda s: s.federated and s.codec is not None and s.codec.name not in _BETWEEN_SITES,
        _NOT_BETWEEN_SITES.format('exchange: codec="{s.codec.name}", unlike bf16, fp16 and int8,'),
    ),
    (
        lambda s: s.federated and _several_lanes(s),
        _NOT_BETWEEN_SITES.format("exchange: lanes={s.lanes}"),
    ),
    (
        lambda s: s.federated and s.device,
        _NOT_BETWEEN_SITES.format("exchange: device=True"),
    ),
    *(
        (
            _and_on_device(holds),
            f"exchange: device=True takes the mean of eq. 2 in the GPU's memory, and {text}. Drop one of the two",
        )
        for holds, text in _NOT_ON_DEVICES
    ),
)


def _check_layers(layers: Any) -> None:
    listed = isinstance(layers, tuple) and layers and all(isinstance(name, str) and name for name in layers)
    if not (layers is None or layers == "batch_norm" or listed):
        raise ConfigurationError(
            f'local_layers must be "batch_norm" or a list of layers\' names, such as ["network.head"]; found {layers!r}'
        )


def _check_whole(name: str, value: Any, least: int, or_none: str = "") -> None:
    if value is None and or_none:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        none = f", or {or_none}" if or_none else ""
        raise ConfigurationError(f"{name} must be a whole number, at least {least}{none}; found {value!r}")
