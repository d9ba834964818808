"""Errors that a user can mend: the command line prints them as one line, without a traceback."""


class PrmError(ValueError):
    """Something the caller gave is wrong; the message names it and says what to do."""


class DataError(PrmError):
    """A row or a file of feedback is wrong; the message names file, line and fault."""


class CheckpointError(PrmError):
    """A run folder is incomplete, damaged, or does not fit the backbone it is loaded with."""
