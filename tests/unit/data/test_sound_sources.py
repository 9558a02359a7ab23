"""Speech Commands and any folder of WAV files: every sample format, the official splits, every fault named."""

import hashlib
import io
import struct
import wave

import numpy as np
import pytest
import soundfile
from miniatures import (
    speech_commands,
    speech_commands_files,
    spoken_digits_files,
    tone,
    wav_bytes,
    write_folder,
    write_tar,
    write_zip,
)

from colearn_hpc.data.arrange import Wishes
from colearn_hpc.data.pack import Request, pack
from colearn_hpc.data.shards import ShardDataset
from colearn_hpc.data.sources.speech_commands import WORDS_V1, SpeechCommands, sha1_split
from colearn_hpc.data.sources.wav import read_wav, to_clip
from colearn_hpc.data.sources.wav_folder import WavFolder
from colearn_hpc.errors import DataError

NAMES = ("a", "b")
PATTERN = "{label}_{speaker}_{n}.wav"


def packed(source, out, **options):
    return pack(source, Request(out, NAMES, **options))


def held(folder, name):
    dataset = ShardDataset(folder / f"{name}.h5")
    x, y = dataset[list(range(len(dataset)))]
    return x.numpy(), y.numpy()


def clip(content, rate=16000, samples=8000):
    return to_clip(*read_wav(content), rate, samples)


# WAV ----------------------------------------------------------------------------------------------------------------

FORMATS = [
    ("pcm", 8, 1 / 100),
    ("pcm", 16, 1 / 30000),
    ("pcm", 24, 1 / 30000),
    ("pcm", 32, 1 / 30000),
    ("float", 32, 1 / 30000),
    ("float", 64, 1 / 30000),
    ("extensible", 16, 1 / 30000),
    ("extensible", 24, 1 / 30000),
]


@pytest.mark.parametrize(("kind", "bits", "tolerance"), FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_gives_the_same_clip(kind, bits, tolerance, channels):
    samples = tone(440)
    stored = np.stack([samples * 1.5, samples * 0.5], axis=1) if channels == 2 else samples
    found = clip(wav_bytes(stored, bits=bits, kind=kind))
    assert np.abs(found / 32768 - samples).max() < tolerance


def test_sixteen_bits_of_the_right_rate_keep_their_bits():
    numbers = np.random.RandomState(0).randint(-32768, 32768, 8000).astype(np.int16)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:  # written by Python's own module, not by our miniature
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(numbers.tobytes())
    assert np.array_equal(clip(buffer.getvalue()), numbers)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_any_rate_becomes_the_one_asked(rate):
    found = clip(wav_bytes(tone(440, rate=rate), rate)) / 32768
    assert np.abs(found[500:-500] - tone(440)[500:-500]).max() < 0.01


def test_short_clips_are_filled_and_long_ones_cut():
    content = wav_bytes(np.full(100, 0.5))
    assert clip(content, samples=150).tolist() == [16384] * 100 + [0] * 50
    assert clip(content, samples=60).tolist() == [16384] * 60
    assert len(clip(content, samples=None)) == 100


def test_chunks_of_any_kind_before_the_samples_are_skipped():
    for extra in (b"LIST" + struct.pack("<I", 4) + b"INFO", b"odd " + struct.pack("<I", 3) + b"abc\0"):
        assert np.array_equal(clip(wav_bytes(tone(440), extra=extra)), clip(wav_bytes(tone(440))))


def patched(at, code, value):
    content = bytearray(wav_bytes(tone(440)))
    struct.pack_into(code, content, at, value)
    return bytes(content)


GOOD = wav_bytes(tone(440))
BROKEN = {
    "empty": (b"", "no WAV file"),
    "text": (b"hello, this is no sound", "no WAV file"),
    "NUL bytes": (bytes(1000), "no WAV file"),
    "wrong magic": (b"RIFC" + GOOD[4:], "no WAV file"),
    "wrong order": (b"RIFX" + GOOD[4:], "256 channels"),
    "AVI": (GOOD[:8] + b"AVI " + GOOD[12:], "no WAV file"),
    "FLAC": (b"fLaC" + bytes(100), "no WAV file"),
    "MP3": (b"ID3\x03" + bytes(100), "no WAV file"),
    "head only": (GOOD[:12], "no format chunk"),
    "format only": (GOOD[:36], "no samples chunk"),
    "cut": (GOOD[:5000], "cut short"),
    "cut by a byte": (GOOD[:-1], "cut short"),
    "length zero": (wav_bytes(np.zeros(0)), "length zero"),
    "samples before the format": (GOOD[:12] + GOOD[36:] + GOOD[12:36], "no format chunk before"),
    "format cut": (GOOD[:16] + struct.pack("<I", 8) + GOOD[20:28] + GOOD[36:], "format chunk of 8 bytes"),
    "extensible cut": (patched(20, "<H", 0xFFFE), "cannot be decoded"),
    "an unknown codec": (patched(20, "<H", 0x1234), "cannot be decoded"),
    "12 bits": (patched(34, "<H", 12), "12 bits"),
    "0 bits": (patched(34, "<H", 0), "0 bits"),
    "float of 16 bits": (patched(20, "<H", 3), "16 bits"),
    "no channels": (patched(22, "<H", 0), "0 channels"),
    "too many channels": (patched(22, "<H", 65), "65 channels"),
    "channels that do not divide": (patched(22, "<H", 7), "not a multiple"),
    "rate 0": (patched(24, "<I", 0), "0 samples per second"),
    "rate absurd": (patched(24, "<I", 2**31), "samples per second"),
    "NaN": (wav_bytes(np.array([0.0, np.nan, 0.0]), bits=32, kind="float"), "no finite numbers"),
    "infinity": (wav_bytes(np.array([0.0, np.inf]), bits=64, kind="float"), "no finite numbers"),
    "announces a GiB": (patched(40, "<I", 2**30), "cut short"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_wavs_are_refused_or_skipped(tmp_path, what):
    content, reason = BROKEN[what]
    source = write_folder(tmp_path / "in", spoken_digits_files() | {"recordings/3_anna_99.wav": content})
    options = {"pattern": PATTERN, "test_where": "n=0"}
    with pytest.raises(DataError, match=rf"3_anna_99.wav: .*{reason}.*--on-error skip"):
        packed(WavFolder(str(source), **options), tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))
    result = packed(WavFolder(str(source), **options), tmp_path / "out", on_error="skip")
    assert len(result.skipped) == 1 and sum(e["examples"] for e in result.manifest["centers"]) == 80


def chunk(tag, content, size=None, order="<"):
    return tag + struct.pack(f"{order}I", len(content) if size is None else size) + content


NUMBERS = np.random.RandomState(0).randint(-32768, 32768, 8000)
SAMPLES = NUMBERS.astype("<i2").tobytes()
FORM = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16))
SUBFORMAT = bytes.fromhex("0100000000001000800000aa00389b71")
FORM_24_IN_32 = chunk(b"fmt ", struct.pack("<HHIIHHHHI", 0xFFFE, 1, 16000, 64000, 4, 32, 22, 24, 4) + SUBFORMAT)
# The same samples, as other programs write them.
WRITTEN = {
    "into a pipe by ffmpeg": chunk(b"RIFF", b"WAVE" + FORM + chunk(b"data", SAMPLES, 2**32 - 1), 2**32 - 1),
    "into a pipe by sox": chunk(b"RIFF", b"WAVE" + FORM + chunk(b"data", SAMPLES, 0x7FFFF000), 0x7FFFF024),
    "by a recorder that was switched off": chunk(b"RIFF", b"WAVE" + FORM + chunk(b"data", SAMPLES, 0), 0),
    "as RF64": chunk(
        b"RF64",
        b"WAVE"
        + chunk(b"ds64", struct.pack("<QQQI", 16072, len(SAMPLES), 8000, 0))
        + FORM
        + chunk(b"data", SAMPLES, 2**32 - 1),
        2**32 - 1,
    ),
    "with the largest byte first": chunk(
        b"RIFX",
        b"WAVE"
        + chunk(b"fmt ", struct.pack(">HHIIHH", 1, 1, 16000, 32000, 2, 16), order=">")
        + chunk(b"data", NUMBERS.astype(">i2").tobytes(), order=">"),
        order=">",
    ),
    "with 24 bits in 32": chunk(
        b"RIFF", b"WAVE" + FORM_24_IN_32 + chunk(b"data", (NUMBERS.astype("<i4") << 16).tobytes())
    ),
    "with a tag behind": chunk(b"RIFF", b"WAVE" + FORM + chunk(b"data", SAMPLES) + chunk(b"id3 ", b"ID3\3\0\0")),
    "with rubbish behind": chunk(b"RIFF", b"WAVE" + FORM + chunk(b"data", SAMPLES)) + b"\0\0\0rubbish",
}


@pytest.mark.parametrize("what", WRITTEN)
def test_headers_of_other_programs(what):
    assert np.array_equal(clip(WRITTEN[what]), NUMBERS)


def test_what_is_cut_is_said_of_rf64_too():
    with pytest.raises(DataError, match="is cut short: 16000 bytes of samples announced, 15990 there"):
        read_wav(WRITTEN["as RF64"][:-10])


@pytest.mark.parametrize("subtype", ["ULAW", "ALAW"])
def test_telephone_codecs_are_decoded(subtype):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(440), 16000, format="WAV", subtype=subtype)
    assert np.abs(clip(buffer.getvalue()) / 32768 - tone(440)).max() < 0.02


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_decoding_a_part_gives_the_bits_of_the_whole(rate):
    content = wav_bytes(np.random.RandomState(0).uniform(-1, 1, 3 * rate), rate)
    whole = to_clip(*read_wav(content), 16000, None)[:9000]
    part = read_wav(content, (16000, 9000))
    assert np.array_equal(to_clip(*part, 16000, 9000), whole)
    assert len(part[1]) < 0.6 * rate + 40


def test_resampling_makes_no_more_than_is_kept(tmp_path):
    """100,000 samples at 1 Hz are 1.6 thousand million at 16 kHz."""
    slow = wav_bytes(np.full(100_000, 0.5), rate=1)
    assert clip(slow, samples=16000).shape == (16000,)
    with pytest.raises(DataError, match="would become 1600000000 samples at 16000 a second; the rate it names, 1,"):
        clip(slow, samples=None)


# Any folder ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "zip", "tar.gz"])
def test_names_tell_class_and_split(tmp_path, form):
    files = spoken_digits_files()
    make = {"folder": write_folder, "zip": write_zip, "tar.gz": write_tar}[form]
    source = make(tmp_path / ("in" if form == "folder" else f"in.{form}"), files)
    result = packed(WavFolder(str(source), PATTERN, test_where="n=0-1", val_where="n=2"), tmp_path / "out")
    assert result.manifest["classes"] == [str(i) for i in range(10)]
    assert {e["split"]: e["class_counts"] for e in result.manifest["evaluation"]} == {"test": [4] * 10, "val": [2] * 10}
    x, y = held(tmp_path / "out", "test")
    assert x.dtype == np.int16 and x.shape == (40, 16000)
    for samples, label in zip(x[:10], y[:10], strict=True):
        peak = np.abs(np.fft.rfft(samples[:6400].astype(float))).argmax() * 16000 / 6400
        assert abs(peak - (150 + 60 * label)) < 20
    assert ShardDataset(tmp_path / "out" / "a.h5").info.metadata["sample_rate"] == 16000


def test_whole_speakers_can_be_held_out(tmp_path):
    source = write_folder(tmp_path / "in", spoken_digits_files(("anna", "ben", "cem")))
    manifest = packed(WavFolder(str(source), PATTERN, test_where="speaker=ben,cem"), tmp_path / "out").manifest
    assert manifest["evaluation"][0]["examples"] == 100


def test_every_speaker_has_a_data_center(tmp_path):
    source = str(write_folder(tmp_path / "in", spoken_digits_files(("anna", "b", "cem"), takes=4)))
    options = {"rule": "by-group", "seed": 1}
    result = packed(WavFolder(source, PATTERN, test_where="n=0", group_by="speaker"), tmp_path / "out", **options)
    # b's examples go to data center b, and the others to the first that has the fewest groups.
    assert [entry["groups"] for entry in result.manifest["centers"]] == [2, 1]
    assert [entry["examples"] for entry in result.manifest["centers"]] == [60, 30]
    alone = packed(WavFolder(source, PATTERN, test_where="speaker=anna,cem"), tmp_path / "b", rule="by-class")
    assert alone.manifest["evaluation"][0]["examples"] == 80
    b = np.concatenate([held(tmp_path / "b", name)[0] for name in NAMES])
    own = held(tmp_path / "out", "b")[0]
    assert {row.tobytes() for row in own} < {row.tobytes() for row in b}
    assert "anna" not in (tmp_path / "out" / "dataset.json").read_text()  # a group may be a patient
    assert packed(WavFolder(source, PATTERN, "n=0", group_by="speaker"), tmp_path / "out", **options).already_there
    with pytest.raises(DataError, match="holds another data set"):
        packed(WavFolder(source, PATTERN, "n=0", group_by="n"), tmp_path / "out", **options)


def test_folders_tell_class_and_split(tmp_path):
    files = {f"{split}/{c}/{i}.wav": GOOD for split in ("train", "testing") for c in "xy" for i in range(3)}
    manifest = packed(WavFolder(str(write_folder(tmp_path / "in", files))), tmp_path / "out").manifest
    assert manifest["classes"] == ["x", "y"] and manifest["evaluation"][0]["class_counts"] == [3, 3]
    files = {f"{split}/{c}_{i}.wav": GOOD for split in ("train", "test") for c in "xy" for i in range(3)}
    source = write_folder(tmp_path / "in2", files)
    manifest = packed(WavFolder(str(source), "{label}_{n}.wav"), tmp_path / "out2").manifest
    assert manifest["evaluation"][0]["class_counts"] == [3, 3]


def test_without_any_hint_a_stratified_share_is_held_out(tmp_path):
    source = write_folder(tmp_path / "in", {f"{c}/{i}.wav": GOOD for c in "xy" for i in range(10)})
    for seed in (0, 1):
        result = packed(WavFolder(str(source)), tmp_path / f"out{seed}", seed=seed, wishes=Wishes(test_fraction=0.3))
        assert result.manifest["evaluation"][0]["class_counts"] == [3, 3]
        assert [sum(c) for c in zip(*(e["class_counts"] for e in result.manifest["centers"]), strict=True)] == [7, 7]
    assert (
        packed(WavFolder(str(source)), tmp_path / "all", wishes=Wishes(test_fraction=0.0)).manifest["evaluation"] == []
    )


IMPOSSIBLE = {
    "no label": ({"pattern": "{speaker}_{n}.wav"}, "needs {label}"),
    "a name twice": ({"pattern": "{label}_{n}_{n}.wav"}, "at most once"),
    "pattern that does not fit": ({"pattern": "{label}-{n}.wav"}, "does not fit"),
    "unknown field": ({"pattern": PATTERN, "test_where": "take=0"}, "a field of the pattern"),
    "no field": ({"pattern": PATTERN, "test_where": "0-4"}, "FIELD=VALUE"),
    "no value": ({"pattern": PATTERN, "test_where": "n="}, "FIELD=VALUE"),
    "all are test": ({"pattern": PATTERN, "test_where": "n=0-99"}, "no clip is left"),
    "both test and val": ({"pattern": PATTERN, "test_where": "n=0", "val_where": "speaker=anna"}, "both"),
    "a class only in test": ({"pattern": PATTERN, "test_where": "label=3"}, "training examples have not: '3'"),
    "no such group": ({"pattern": PATTERN, "group_by": "voice"}, "--group-by: 'voice' is no field of the pattern"),
    "groups without a pattern": ({"group_by": "speaker"}, "--group-by: .* it has label"),
    "rate": ({"rate": 0}, "--rate"),
    "seconds": ({"seconds": 0.0}, "--seconds"),
    "endless": ({"seconds": 1e9}, "--seconds"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_impossible_wav_requests(tmp_path, what):
    options, message = IMPOSSIBLE[what]
    source = write_folder(tmp_path / "in", spoken_digits_files(takes=2))
    with pytest.raises(DataError, match=message):
        packed(WavFolder(str(source), **options), tmp_path / "out")


def test_folders_without_sound(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.wav"):
        packed(WavFolder(str(write_folder(tmp_path / "a", {"x/readme": b""}))), tmp_path / "out")
    with pytest.raises(DataError, match="in no class folder"):
        packed(WavFolder(str(write_folder(tmp_path / "b", {"1.wav": GOOD}))), tmp_path / "out")


# Speech Commands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "tar.gz", "zip", "inner folder"])
def test_speech_commands_by_its_lists(tmp_path, form):
    files = speech_commands_files()
    if form == "inner folder":
        source = write_folder(tmp_path / "in", {f"speech_commands_v0.01/{name}": c for name, c in files.items()})
    elif form == "folder":
        source = write_folder(tmp_path / "in", files)
    else:
        source = (write_zip if form == "zip" else write_tar)(tmp_path / f"in.{form}", files)
    result = packed(SpeechCommands(str(source)), tmp_path / "out")
    assert result.manifest["classes"] == ["bed", "no", "yes"] and result.notes == ()
    counts = {e["split"]: e["class_counts"] for e in result.manifest["evaluation"]}
    assert counts == {"val": [2, 2, 2], "test": [2, 2, 2]}
    assert sum(e["examples"] for e in result.manifest["centers"]) == 24
    x, _ = held(tmp_path / "out", "a")
    assert x.shape[1] == 16000 and any(not row[11200:].any() for row in x)
    noise = np.load(tmp_path / "out" / "noise.npy")
    assert noise.dtype == np.int16 and noise.shape == (40000,) and abs(noise).max() <= 3277
    assert result.manifest["sidecars"] == ["noise.npy"]


def test_the_speakers_of_speech_commands_are_groups(tmp_path):
    source = speech_commands(tmp_path / "in", speakers=12, lists=False)
    spoken = [name for name in speech_commands_files(speakers=12) if "_nohash_" in name]
    speakers = {name.split("/")[1].split("_")[0] for name in spoken if sha1_split(name) == "train"}
    manifest = packed(SpeechCommands(str(source)), tmp_path / "out", rule="by-group").manifest
    assert sum(entry["groups"] for entry in manifest["centers"]) == len(speakers) > 2


def test_without_lists_the_rule_of_the_readme(tmp_path):
    source = speech_commands(tmp_path / "in", speakers=60, lists=False)
    result = packed(SpeechCommands(str(source)), tmp_path / "out")
    assert "SHA-1 rule" in " ".join(result.notes)
    names = [name for name in speech_commands_files(speakers=60) if "_nohash_" in name]
    counts = {e["split"]: e["examples"] for e in result.manifest["evaluation"]}
    for split in ("val", "test"):
        assert counts[split] == sum(sha1_split(name) == split for name in names) > 0


def test_the_rule_itself():
    """Computed by the formula in the data set's README; speakers never straddle splits; shares are 80/10/10."""
    name = "0a7c2a8d"
    percent = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 2**27 * 100.0 / (2**27 - 1)
    assert sha1_split(f"yes/{name}_nohash_0.wav") == ("val" if percent < 10 else "test" if percent < 20 else "train")
    speakers = [f"{i:08x}" for i in range(4000)]
    splits = [sha1_split(f"yes/{speaker}_nohash_0.wav") for speaker in speakers]
    assert splits == [sha1_split(f"no/{speaker}_nohash_7.wav") for speaker in speakers]
    assert abs(splits.count("val") - 400) < 80 and abs(splits.count("test") - 400) < 80


def test_words_can_be_chosen(tmp_path):
    source = speech_commands(tmp_path / "in", words=(*WORDS_V1, "visual"), speakers=3)
    assert len(WORDS_V1) == 30
    for words, count in (("all", 31), ("v0.01", 30), ("yes, no", 2)):
        manifest = packed(SpeechCommands(str(source), words), tmp_path / f"out{count}").manifest
        assert len(manifest["classes"]) == count


def edited(change):
    return lambda files: files | change(files)


def listed(name, text):
    return lambda files: files | {name: text}


BAD_SETS = {
    "one list only": (lambda f: {n: c for n, c in f.items() if n != "testing_list.txt"}, "has only validation_list"),
    "a clip in both lists": (lambda f: f | {"testing_list.txt": f["validation_list.txt"]}, "is in both lists"),
    "a listed clip missing": (
        listed("testing_list.txt", b"yes/nobody_nohash_0.wav\n"),
        "clips of the lists are missing",
    ),
    "a list of noise": (listed("testing_list.txt", b"\xff\xfe\xfa"), "testing_list.txt"),
    "no clips": (lambda f: {n: c for n, c in f.items() if not n.endswith(".wav")}, "holds no <word>"),
    "only noise": (lambda f: {n: c for n, c in f.items() if n.startswith("_")}, "holds no <word>"),
    "noise damaged": (listed("_background_noise_/white.wav", b"hello"), "white.wav is no WAV"),
    "a clip damaged": (lambda f: f | {next(n for n in f if "_nohash_" in n): b""}, "is no WAV file"),
}


@pytest.mark.parametrize("what", BAD_SETS)
def test_damaged_speech_commands_are_refused(tmp_path, what):
    damage, message = BAD_SETS[what]
    source = write_folder(tmp_path / "in", damage(speech_commands_files()))
    with pytest.raises(DataError, match=message):
        packed(SpeechCommands(str(source)), tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_a_word_without_a_folder(tmp_path):
    with pytest.raises(DataError, match="no folder for maybe"):
        packed(SpeechCommands(str(speech_commands(tmp_path / "in")), "yes,maybe"), tmp_path / "out")
