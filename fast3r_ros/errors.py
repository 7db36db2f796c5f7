"""The one exception that is shown to people as a single line."""


class UserError(ValueError):
    """Something the user gave cannot be used: a file, a parameter, a model name.

    The message says what was wrong, the value, and what to do.  The command line prints it as one line
    and exits with status 2; the node logs it and stops (start-up) or counts it (run time).
    """
