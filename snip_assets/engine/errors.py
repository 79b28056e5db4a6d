"""What can go wrong for a user, each with its cure."""


class SnipError(Exception):
    """A condition that the user can mend: the message names the file and says what to do.

    The command line prints it without a stack trace and exits with `exit_code`.
    """

    exit_code = 1


class BadInputError(SnipError):
    """An input file is missing, damaged or does not fit the others."""

    exit_code = 2


class StaleOutputError(SnipError):
    """A stored output does not match its manifest, or belongs to other inputs."""

    exit_code = 3


class DiskFullError(SnipError):
    """No room for an output: the disk, a quota or a limit on the size of files."""

    exit_code = 4
