"""Errors of the training package, each with the exit status of ``digitserve-train``.

    TrainingError
    ├── DataError         images are missing, damaged or of another kind than expected
    ├── RunError          a run's folder cannot be used: nothing to resume, other settings, not finished; or a bundle,
    │                     or a service, that is to be evaluated
    ├── DivergedError     the loss is not finite
    ├── ParityError       the exported graph does not give the network's outputs
    └── WorkerError       distributed workers disagree, or one of them is lost

Each message states what was found, what was expected and what the user can do. ``cli`` prints it without a traceback.
"""


class TrainingError(Exception):
    """Base class of all errors that this package raises on purpose; its text is written for the user.

    Attributes:
        exit_code: exit status of a command that fails with this error.
    """

    exit_code = 1


class DataError(TrainingError):
    """The images or labels cannot be used; the same file will fail again."""

    exit_code = 3


class RunError(TrainingError):
    """A run's folder, a bundle or a service cannot be used as requested."""

    exit_code = 4


class DivergedError(TrainingError):
    """The loss is not finite; the last checkpoint before that is kept."""

    exit_code = 5


class ParityError(TrainingError):
    """The exported graph does not give the network's outputs; no bundle was written."""

    exit_code = 6


class WorkerError(TrainingError):
    """Distributed workers cannot train together; the last checkpoint is kept."""

    exit_code = 7
