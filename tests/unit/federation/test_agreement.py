"""federation.yaml is read strictly: whatever could be meant otherwise is refused, with what to do."""

import random
from dataclasses import replace

import pytest
from certificates import Consortium

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.federation.agreement import PERMISSIONS, USUAL, Federation, seconds_of, split_address

PRINT = "sha256:" + "ab" * 32


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    return Consortium(
        tmp_path_factory.mktemp("consortium"), coordinator="colearn.example.org:443", round_timeout=21600.0
    )


def read(consortium, tmp_path, text):
    path = tmp_path / "federation.yaml"
    path.write_text(text)
    return Federation.read(path)


def test_it_comes_back(consortium, tmp_path):
    federation = Federation.read(consortium.path)
    assert federation == consortium.federation and federation.names == ("lyon", "kiel", "oslo")
    assert (federation.host, federation.port) == ("colearn.example.org", 443)
    assert federation.site("kiel").may == USUAL and "stop_all" not in USUAL
    assert (
        federation.owner_of(federation.site("oslo").fingerprint).name == "oslo" and federation.owner_of(PRINT) is None
    )
    with pytest.raises(ConfigurationError, match="its sites are lyon, kiel, oslo"):
        federation.site("rome")


def test_who_has_left_keeps_its_place(consortium, tmp_path):
    federation = consortium.federation
    gone = replace(federation, sites=(federation.sites[0], replace(federation.sites[1], may=(), left=True)))
    assert read(consortium, tmp_path, gone.to_yaml()) == gone and "left: true" in gone.to_yaml()
    assert gone.names == ("lyon", "kiel") and gone.active == (0,) and gone.digest() != federation.digest()
    assert gone.items()["site kiel"].endswith("has left")
    text = gone.to_yaml()
    for other, why in (("left: maybe", "must be true or false"), ("left: true, may: [join]", "so it may nothing")):
        with pytest.raises(ConfigurationError, match=why):
            read(consortium, tmp_path, text.replace("left: true", other))


def test_the_digest_is_of_what_is_meant(consortium, tmp_path):
    text, federation = consortium.path.read_text(), consortium.federation
    begin = text.index("ca: |")
    (tmp_path / "ca.pem").write_text(federation.ca)
    for same in (
        "# another comment\n" + text,
        text[:begin] + "ca: ca.pem\n",
        text.replace("21600.0", "6h"),
        text.replace("[join, give, see_mean, preside]", "[preside, see_mean, give, join]"),
        text.replace(", may: [join, give, see_mean, preside]", ""),
    ):
        assert same != text and read(consortium, tmp_path, same).digest() == federation.digest()
    swapped = (federation.sites[1], federation.sites[0], federation.sites[2])
    others = [
        replace(federation, sites=swapped),
        replace(federation, sites=federation.sites[:2]),
        replace(federation, on_failure="continue_without"),
        replace(federation, round_timeout=None),
        replace(federation, coordinator="colearn.example.org:444"),
        replace(federation, sites=(replace(federation.sites[0], may=PERMISSIONS), *federation.sites[1:])),
    ]
    assert len({one.digest() for one in [federation, *others]}) == 7


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("run:", "runs:", "has no setting 'runs'; there are run, coordinator"),
        ("on_failure:", "privacy: {secure: true}\non_failure:", "no setting 'privacy'"),
        ("run:", "run: a\nrun:", "'run' stands there twice"),
        ('"kiel"', '"lyon"', "'lyon' stands there twice"),
        ('"kiel"', '"Lyon"', "lyon and Lyon have one name"),
        ('"kiel"', '"../kiel"', "a name becomes a folder"),
        ('"kiel"', '"coordinator"', "the name of a folder"),
        ('"kiel"', "7", "key 7 must be text"),
        ("sha256:", "sha512:", "must be sha256: and 64 hexadecimal digits"),
        ("[join, give", "[join, fly", "has no 'fly'; there are join"),
        ("[join, give", "[give", "but not join"),
        ("[join, give", "[join, join", "names join twice"),
        ("may: [join, give, see_mean, preside]", "may: join", "may must be a list"),
        ("may:", "can:", "sites: lyon has no setting 'can'"),
        ('{fingerprint: "', '"', "is no YAML"),
        (":443", "", "must be host:port"),
        (":443", ":70000", "must be host:port"),
        ("21600.0", "-1", "must be a positive time"),
        ("21600.0", "6 weeks", "such as 90s, 30min, 6h, 2d"),
        ("21600.0", ".inf", "must be a positive time"),
        ('"stop"', '"go"', "must be one of stop, continue_without"),
        ("BEGIN CERTIFICATE", "BEGIN CERTIFICATF", "cannot be read|no certificate"),
        ('run: "gut"', "run: 7", "run must be text"),
        ("ca: |", "more: |", "has no setting 'more'"),
    ],
)
def test_what_is_refused(old, new, said, consortium, tmp_path):
    text = consortium.path.read_text()
    assert old in text
    with pytest.raises(ConfigurationError, match=said) as caught:
        read(consortium, tmp_path, text.replace(old, new, 1))
    assert str(caught.value).startswith(str(tmp_path / "federation.yaml"))


def test_one_certificate_is_one_site(consortium, tmp_path):
    sites = consortium.federation.sites
    with pytest.raises(ConfigurationError, match="lyon and kiel have one fingerprint"):
        replace(consortium.federation, sites=(sites[0], replace(sites[1], fingerprint=sites[0].fingerprint)))
    with pytest.raises(ConfigurationError, match="the coordinator and kiel have one fingerprint"):
        replace(consortium.federation, coordinator_fingerprint=sites[1].fingerprint)
    with pytest.raises(ConfigurationError, match="lyon and lyon have one name"):
        replace(consortium.federation, sites=(sites[0], replace(sites[0], fingerprint=PRINT)))


@pytest.mark.parametrize("content", ["", "[]", "a: &a [*a]", "\x00", "x" * (1 << 20) + "y", "a: " + "[" * 5000])
def test_no_agreement_at_all(content, consortium, tmp_path):
    with pytest.raises(ConfigurationError):
        read(consortium, tmp_path, content)
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        Federation.read(tmp_path / "none.yaml")


def test_changed_bytes_are_refused_or_read(consortium, tmp_path):
    """Nothing but a ConfigurationError comes of a damaged file, and what is read means what it says."""
    draw, text = random.Random(1), consortium.path.read_bytes()
    refused = 0
    for _ in range(150):
        damaged = bytearray(text)
        for _ in range(draw.randrange(1, 4)):
            place = draw.randrange(len(damaged))
            damaged[place : place + draw.randrange(3)] = draw.randbytes(draw.randrange(3))
        (tmp_path / "federation.yaml").write_bytes(damaged)
        try:
            found = Federation.read(tmp_path / "federation.yaml")
        except ConfigurationError:
            refused += 1
        else:
            (tmp_path / "federation.yaml").write_text(found.to_yaml())
            assert Federation.read(tmp_path / "federation.yaml") == found
    assert refused > 100


def test_small_values():
    assert [seconds_of(one) for one in (None, 5, "90s", "30min", "6h", "1.5 d")] == [None, 5, 90, 1800, 21600, 129600]
    assert split_address("[::1]:443") == ("::1", 443)
    for wrong in ("", ":443", "a b:1", "host:0", "host:-1", "host:١", "-a:1", "[x]:1", "host:443\n"):
        with pytest.raises(ConfigurationError, match="host:port"):
            split_address(wrong)
