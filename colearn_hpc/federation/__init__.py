"""A run over sites that share no MPI world: who they are, what they agreed on, and how they talk.

    agreement.py   federation.yaml: the run, its coordinator, its sites in order, what each may do
    identity.py    a certificate and its key, in a folder of their own
    checks.py      why a certificate is refused, in words
    authority.py   the run's certificate authority: makes the coordinator's certificate, signs sites' requests
    letters.py     what organiser and sites send each other before there is a connection
    reach.py       whether the coordinator can be reached, and who answers there

No torch here. Needs ``pip install 'colearn_hpc[federation]'``.
"""

from colearn_hpc.errors import ConfigurationError

try:
    import cryptography as cryptography
except ModuleNotFoundError as error:
    raise ConfigurationError(
        f"a federation needs {error.name}, which is not installed; `pip install 'colearn_hpc[federation]'`"
    ) from None
