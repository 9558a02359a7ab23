__version__ = "0.2.0"

# What data centers must have in common is not the release: one may take a security patch in the middle of a run.
PROTOCOL = 1  # raise it where meetings, messages or frames change so that two releases would not understand each other
NUMERICS = 1  # raise it where the same settings and data give other bits, that is, with any golden
