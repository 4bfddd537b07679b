"""Failures in the log: their details under a number that a person can quote."""

import logging
import secrets

LOG = logging.getLogger("depth_control.ui")


def log_failure(error: BaseException) -> str:
    """Write a failure and its traceback to the log; gives its number."""
    number = secrets.token_hex(4)
    LOG.error("failure %s", number, exc_info=error)
    return number
