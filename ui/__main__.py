"""`python -m ui`: the place of the app, which this version does not have."""

import sys

print("depth-control: the app is not part of this version; see `depth-control --help`", file=sys.stderr)
raise SystemExit(2)
