"""Who may know what: differential privacy inside a site, and masks that hide a site's vector in a sum.

Pure: no MPI, no Lightning. Needs ``pip install 'colearn_hpc[privacy]'``.
"""
