"""What a user can put right."""


class HuvrError(ValueError):
    """A mistake in the input: one line that says what is wrong, where, and what is allowed.

    The command line prints it without a traceback and exits with status 2.
    """


def reason(error: BaseException) -> str:
    """The first line of what it says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def of_worker(message: str) -> str:
    """A data worker's error arrives inside a text with the worker's traceback; the error itself is its last line."""
    if not message.startswith(f"Caught {HuvrError.__name__} in DataLoader worker"):
        return message
    return message.strip().splitlines()[-1].removeprefix(f"{HuvrError.__module__}.{HuvrError.__name__}: ")


def require(limits: dict[str, bool]) -> None:
    """Raises HuvrError with the first text whose limit is not kept."""
    for mistake in (text for text, kept in limits.items() if not kept):
        raise HuvrError(mistake)
