"""What a user can get wrong, one class a kind.

Every message says three things: what was set, what was found, what to do. All of them are a
:class:`ColearnError`, so that the command line can tell "your input" from "our bug": the
former ends with one line on stderr, the latter with a traceback. Every kind has a key: ``colearn-hpc explain KEY``
says what lies behind it (cli/troubleshooting.md).
"""

from typing import TypeVar

E = TypeVar("E", bound="ColearnError")

# Exit codes that no shell, MPI or Slurm uses.
RESUME_CODE = 85  # "stopped in good order; start me again"
ABORT_CODE = 86  # "some rank could not be reached, and all were ended"; a fresh start may well succeed


class ColearnError(Exception):
    """Base of everything this package raises on purpose.

    Attributes:
        key: names the section of cli/troubleshooting.md about this kind; empty: the text has another error's.
        everywhere: every rank raises this error by itself, from the same facts, so nobody has to be told.
    """

    key = ""
    everywhere = False

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        if self.key:
            self.add_note(f"({self.more})")  # a traceback ends with it

    @property
    def more(self) -> str:
        """Where to read on about this kind of error."""
        return f"more: colearn-hpc explain {self.key}"

    def on_all_ranks(self: E) -> E:
        """Mark the error as raised on every rank alike; returns it."""
        self.everywhere = True
        return self


class ConfigurationError(ColearnError, ValueError):
    """A setting is impossible, or two settings contradict each other."""

    key = "configuration"


class TopologyError(ConfigurationError):
    """The ranks do not form the data centers that were declared."""

    key = "ranks"


class FingerprintError(ConfigurationError):
    """Two data centers run different models, settings or package versions."""

    key = "differs"


class DataError(ColearnError, ValueError):
    """A data file is missing, unreadable, or not what it claims to be."""

    key = "data"


class CheckpointError(ColearnError, ValueError):
    """A resume point is missing, damaged, or belongs to another run."""

    key = "resume"


class ParticipantError(ColearnError, RuntimeError):
    """A data center delivered weights that must not enter the mean (NaN, Inf)."""

    key = "nan"


class RoundTimeoutError(ColearnError, TimeoutError):
    """A data center or one of its ranks did not come in time, or a mean stood still for too long."""

    key = "timeout"


class CenterBrokenError(ColearnError, RuntimeError):
    """Another rank of this data center failed; this one cannot go on alone, until all of them begin again."""

    key = "center"


class PrivacyError(ColearnError, RuntimeError):
    """What would hide a site's vector does not hold: a key, a mask, or who is summed."""

    key = "privacy"


class IdentityError(ConfigurationError):
    """A certificate, a key or a name does not hold: who comes is not let in, or this site would not be."""

    key = "identity"


class FederationError(ColearnError, RuntimeError):
    """The coordinator of a federation refuses, or a site cannot take part as it is."""

    key = "federation"


class LeftBehindError(RoundTimeoutError):
    """This process of a site cannot go on, though a new one can: the others have gone on without it, or must wait for
    another one."""

    key = "federation"


class LaunchError(ColearnError, RuntimeError):
    """What :func:`colearn_hpc.launch` started has failed; the message has the traceback of the rank that did."""

    key = "launch"


class Interrupted(SystemExit):
    """The run was asked to stop, every data center has a resume point, and the next start continues.

    Not an error: where nobody catches it, the process ends with exit code 85, by which a batch script knows.
    """

    everywhere = True

    def __init__(self, reason: str) -> None:
        super().__init__(RESUME_CODE)
        self.reason = reason

    def __str__(self) -> str:
        return f"stopped by {self.reason}"


class LeftOut(SystemExit):
    """The other data centers have finished the run without this one (``on_failure="continue_without"``)."""

    everywhere = True

    def __init__(self) -> None:
        super().__init__(0)

    def __str__(self) -> str:
        return "the other data centers have finished the run without this one; shared.ckpt is theirs"


class PeerError(ColearnError, RuntimeError):
    """Another rank failed; this one ends with it. The message is the other rank's, the same on all."""

    everywhere = True


def text_of(error: BaseException) -> str:
    """What an exception says; empty where it says nothing, or where its own ``__str__`` fails."""
    try:
        return str(error)
    except Exception:
        return ""


def words_of(error: BaseException) -> str:
    """What an exception says; its class where it says nothing."""
    return text_of(error) or type(error).__name__
