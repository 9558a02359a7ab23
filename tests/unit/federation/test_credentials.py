"""Mask keys in a federation: signed by certificates, which each site knows by its own federation.yaml."""

import certificates
import pytest

from colearn_hpc.errors import PrivacyError
from colearn_hpc.federation.credentials import Certified
from colearn_hpc.federation.link import Membership
from colearn_hpc.privacy.keys import AttemptKeys, SignedKey, Transcript

NAMES = ("lyon", "kiel", "oslo")


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    consortium = certificates.Consortium(tmp_path_factory.mktemp("run"), NAMES)
    return {name: Certified(Membership.read(consortium.path, name)) for name in NAMES}


def transcript(**changes):
    plan = {"run": "r", "round": 0, "attempt": 0, "roster": NAMES, "size": 9, "bits": 32, "scales": (20,)}
    return Transcript(**(plan | {"weights": (1.0,) * 3} | changes))


def known(sites):
    """What lyon knows the others by, after all have shown their certificates."""
    return {name: sites["lyon"].key_of(name, sites[name].shown) for name in NAMES}


def keys_of(sites, about):
    return {name: AttemptKeys(name, sites[name].signing, about) for name in NAMES}


def test_sites_agree_on_masks(sites):
    keys = keys_of(sites, transcript())
    told = [own.signed for own in keys.values()]
    seeds = {name: keys[name].seeds(told, known(sites)) for name in NAMES}
    first = next(seed for seed in seeds["lyon"] if seed.other == "oslo")
    last = next(seed for seed in seeds["oslo"] if seed.other == "lyon")
    assert first.take() == last.take() and (first.adds, last.adds) == (True, False)


@pytest.mark.parametrize("shown", [None, b"", b"\x30" * 100_000, "text", [1], "kiel's"])
def test_another_certificate_is_refused(sites, shown):
    content = sites["kiel"].shown if shown == "kiel's" else shown
    with pytest.raises(
        PrivacyError, match=r"what was shown as the certificate of site oslo is sha256:.* nothing is sent"
    ):
        sites["lyon"].key_of("oslo", content)


def test_one_authority_cannot_invent_a_site(sites, tmp_path):
    """A certificate for the same name, by the same authority: not the one that is pinned."""
    consortium = certificates.Consortium(tmp_path, NAMES)
    forged = Certified(Membership.read(consortium.path, "oslo"))
    with pytest.raises(PrivacyError, match="certificate of site oslo"):
        sites["lyon"].key_of("oslo", forged.shown)


@pytest.mark.parametrize("lie", ["unsigned", "swapped", "replayed", "another attempt", "another roster", "own"])
def test_the_coordinator_changes_no_key(sites, lie):
    """It carries all keys, and can only lose them."""
    about = transcript()
    keys = keys_of(sites, about)
    told = {name: own.signed for name, own in keys.items()}
    oslo = told["oslo"]
    if lie == "unsigned":
        told["oslo"] = SignedKey("oslo", oslo.key, b"")
    elif lie == "swapped":
        told["oslo"] = SignedKey("oslo", told["kiel"].key, told["kiel"].signature)
    elif lie == "own":
        told["lyon"] = AttemptKeys("lyon", sites["lyon"].signing, about).signed
    else:
        other = {"replayed": {"round": 1}, "another attempt": {"attempt": 1}, "another roster": {"roster": NAMES[::-1]}}
        told["oslo"] = AttemptKeys("oslo", sites["oslo"].signing, transcript(**other[lie])).signed
    with pytest.raises(PrivacyError, match="the sum is not begun"):
        keys["lyon"].seeds(told.values(), known(sites))


def test_a_site_that_was_killed_has_the_same_key_again(sites):
    secret = bytes(range(32))
    first, again = (AttemptKeys("lyon", sites["lyon"].signing, transcript(), secret).signed for _ in range(2))
    assert first.key == again.key
