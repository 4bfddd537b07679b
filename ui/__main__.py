"""`python -m ui`: the app, as `depth-control ui`."""

import sys

from ui.cli import main

raise SystemExit(main(["ui", *sys.argv[1:]]))
