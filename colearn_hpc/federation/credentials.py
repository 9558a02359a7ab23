"""With what a site signs its mask keys, and by what it knows those of others: certificates, pinned by fingerprint.

Whoever carries the messages, the coordinator too, can neither sign for a site nor show another certificate for it: a
site looks the fingerprint up in its own copy of ``federation.yaml``.
"""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from colearn_hpc.errors import PrivacyError
from colearn_hpc.federation.agreement import certificate_of
from colearn_hpc.federation.link import Membership
from colearn_hpc.privacy.keys import SigningKey, VerifyingKey

_LARGEST = 1 << 14  # bytes of a certificate


class Certified:
    """:class:`~colearn_hpc.privacy.keys.Credentials` of a site of a federation.

    Args:
        membership: which site of which federation.
    """

    def __init__(self, membership: Membership) -> None:
        self._federation = membership.federation
        self.signing: SigningKey = membership.identity.signing_key()
        self.shown = certificate_of(membership.identity.certificate).public_bytes(Encoding.DER)

    def key_of(self, site: str, shown: object) -> VerifyingKey:
        """The key of the certificate that ``federation.yaml`` lists for a site.

        Args:
            site: its name.
            shown: the certificate that was told, DER.

        Raises:
            PrivacyError: it is another one.
        """
        pinned = self._federation.site(site).fingerprint
        content = shown if isinstance(shown, bytes) and len(shown) <= _LARGEST else b""
        found = "sha256:" + hashlib.sha256(content).hexdigest()
        if found != pinned:
            raise PrivacyError(
                f"what was shown as the certificate of site {site} is {found[:23]}…, and federation.yaml lists "
                f"{pinned[:23]}…; somebody changed it on its way: nothing is sent"
            )
        key = x509.load_der_x509_certificate(content).public_key()
        if not isinstance(key, EllipticCurvePublicKey):
            raise PrivacyError(f"the certificate of site {site} has no elliptic-curve key; ask it for another one")
        return key
