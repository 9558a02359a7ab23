"""Ends the process that imports it, as a script does that is taken for a module."""

import sys

sys.exit()
