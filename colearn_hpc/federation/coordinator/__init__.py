"""The coordinator of a federation: it keeps the roster, holds meetings, and sums chunks as they come.

    service.py    the two methods, over gRPC with client certificates
    meetings.py   who is waited for, and what came of each meeting; pure
    change.py     another federation.yaml than before: who has left, who joins, from which round on; pure
    means.py      a mean under way, and means that are kept
    sums.py       eq. 2 in NumPy
    store.py      what survives a kill; spool.py: the means' files
    events.py     one line per event

It decides nothing, runs no user's code and knows no torch. It may be killed at any instruction: what it has told anyone
was durable before, and what was under way is brought again by the sites.
"""
