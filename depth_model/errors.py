"""The exceptions whose message is the whole story."""


class InputError(ValueError):
    """A request that cannot be served as it was made: a bad file, flag, key or value.

    The message is one line for a person: what was wrong, where (file, key, flag), what to do. The command line prints
    it and ends with status 2; library users may catch it as a `ValueError`.
    """


class RunError(RuntimeError):
    """A good request whose run failed: a full disk, a lost process, gradients that are not finite.

    The message is one line as for `InputError`; the command line prints it and ends with status 1.
    """
