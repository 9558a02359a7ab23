"""Where the method runs. The only room that imports mpi4py, and only when a rank joins."""
