"""The one exception that means "the user can fix this": commands print it in one line and exit with code 2."""


class InputError(ValueError):
    """Raised for bad input; the message carries the value, the limit and the remedy in one line."""


def is_interrupt(error: Exception) -> bool:
    """Whether an error of a compiled program is a KeyboardInterrupt that struck inside one of its host callbacks."""
    return isinstance(error, RuntimeError | ValueError) and "KeyboardInterrupt" in str(error)
