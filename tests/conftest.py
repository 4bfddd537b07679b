"""Settings that libraries read when they are first imported."""

import os

# As the command line sets it where stderr is no terminal; test modules import the libraries before it can.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
