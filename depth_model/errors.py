"""The one exception that means "the request itself is wrong"."""


class InputError(ValueError):
    """A request that cannot be served as it was made: a bad file, flag, key or value.

    The message is one line for a person: what was wrong, where (file, key, flag), what to do. The command line prints
    it and ends with status 2; library users may catch it as a `ValueError`.
    """
