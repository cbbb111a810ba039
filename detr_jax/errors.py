"""Errors that a user can act on.

They are raised on purpose, with a message that states what is wrong, where, and what to do. The command line
prints the message alone (`runtime.startup.exit_with_message`); every other exception keeps its traceback.
Each class also derives from the built-in exception that fits, so Python callers can catch either.
"""


class UserError(ValueError):
    """User input cannot be used: a setting, an image, an annotation, a checkpoint."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named does not exist."""


class MissingPackageError(UserError, ImportError):
    """An optional package that the request needs is not installed."""


class DivergedError(UserError, FloatingPointError):
    """Training produced a loss, gradient, parameter or matching cost that is not finite."""
