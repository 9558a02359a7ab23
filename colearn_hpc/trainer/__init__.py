"""Inside Lightning: the callback that drives the rounds, and what it needs around it."""
