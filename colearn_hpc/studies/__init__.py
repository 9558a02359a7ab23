"""The paper's comparison by one command: a grid of runs, and the report on them.

This room sees what a user sees: study files, run folders and the ``colearn-hpc`` command. It imports no other room.
"""
