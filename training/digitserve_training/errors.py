"""What can go wrong in training, each kind with the exit status that ``digitserve-train`` ends with.

    TrainingError
    ├── DataError         the images are missing, damaged, or something else
    ├── RunError          the run's folder cannot be used as asked: nothing to resume, another preset, not finished
    ├── DivergedError     the loss is no longer a number
    ├── ParityError       the exported graph disagrees with the network
    └── WorkerError       of several workers, one is gone or does something else

Texts are for whoever trains: what was got, what was expected, what to do.
"""


class TrainingError(Exception):
    """Base of every error that is raised on purpose; its text is fit to be shown.

    Attributes:
        exit_code: of the command that it ends.
    """

    exit_code = 1


class DataError(TrainingError):
    """The images or labels cannot be used; training again on the same file will not help."""

    exit_code = 3


class RunError(TrainingError):
    """A run's folder cannot be used as it was asked."""

    exit_code = 4


class DivergedError(TrainingError):
    """The loss is not finite; the last checkpoint before it is kept."""

    exit_code = 5


class ParityError(TrainingError):
    """The exported graph gives other answers than the network; nothing was written."""

    exit_code = 6


class WorkerError(TrainingError):
    """Several workers cannot train together; the last checkpoint is kept."""

    exit_code = 7
