"""What a user can put right."""


class HuvrError(ValueError):
    """A mistake in the input: one line that says what is wrong, where, and what is allowed.

    The command line prints it without a traceback and exits with status 2.
    """
