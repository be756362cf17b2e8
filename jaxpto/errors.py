"""The one exception that means "the user can fix this": commands print it in one line and exit with code 2."""


class InputError(ValueError):
    """Raised for bad input; the message carries the value, the limit and the remedy in one line."""
