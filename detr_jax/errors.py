"""Errors that a user can act on.

They are raised on purpose, with a message that says what was wrong, where, and what to do. The command line
prints them as one line (`runtime.startup.exit_with_message`); every other exception is a fault of the program
and keeps its traceback. Each class also derives from the built-in exception that fits, so Python callers can
catch either.
"""


class UserError(ValueError):
    """Something the user gave cannot be used: a setting, an image, an annotation, a checkpoint."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder the user named does not exist."""


class MissingPackageError(UserError, ImportError):
    """An optional package that the request needs is not installed."""


class DivergedError(UserError, FloatingPointError):
    """Training produced a loss or a matching cost that is not finite."""
