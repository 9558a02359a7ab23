"""Carried by MPI: who is in which data center, and what lies inside and between them.

The only room that imports mpi4py, and only when a rank joins.
"""
