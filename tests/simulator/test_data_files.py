"""Where files are looked for, and downloads that fail in every way; the network is never used."""

import hashlib
import http.client
import io
import urllib.error
import urllib.request

import pytest

from spikebit.simulator.data import load
from spikebit.simulator.data.files import DataFile, Source, check_sha256, open_content

CONTENT = bytes(range(256)) * 4000  # some chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def reader(path, called):
    with open_content(path, called) as stream:
        content = stream.read()
    check_sha256(called, hashlib.sha256(content).hexdigest(), SHA256)
    return content


class Response(io.BytesIO):
    """What `urlopen` returns: a body and headers; may break off."""

    def __init__(self, body, length=None, error=None):
        super().__init__(body)
        self.headers = {} if length is None else {"Content-Length": str(length)}
        self.error = error

    def read(self, size):
        data = super().read(size)
        if not data and self.error is not None:
            raise self.error
        return data


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Plays a server: gives its answers in turn; records what is asked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SPIKEBIT_DATA", raising=False)

    class Server:
        answers, asked = (), ()

        def __call__(self, request, timeout):
            assert timeout > 0
            self.asked += (request.full_url,)
            answer, *self.answers = self.answers
            if isinstance(answer, Exception):
                raise answer
            return answer

    server = Server()
    monkeypatch.setattr(urllib.request, "urlopen", server)
    return server


FILE = DataFile("some.bin.gz", "sub", SHA256, ("https://one/f", "https://two/f"))


def cached(tmp_path):
    home = tmp_path / "cache" / "spikebit" / "sub"
    return [path.name for path in home.iterdir()] if home.exists() else []


def test_download_lands_in_the_cache_and_is_not_repeated(tmp_path, server):
    server.answers = [Response(CONTENT, len(CONTENT))]
    seen = []
    source = Source(progress=lambda *args: seen.append(args))
    assert source.read(FILE, reader) == CONTENT
    assert cached(tmp_path) == ["some.bin.gz"]
    assert source.read(FILE, reader) == CONTENT
    assert server.asked == ("https://one/f",)
    assert seen[-1] == ("some.bin.gz", len(CONTENT), len(CONTENT))
    assert len(seen) > 1
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_download_through_urllib_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "there").write_bytes(CONTENT)
    file = DataFile("some.bin", "sub", SHA256, ((tmp_path / "there").as_uri(),))
    assert Source().read(file, reader) == CONTENT
    assert cached(tmp_path) == ["some.bin"]


@pytest.mark.parametrize(
    "broken",
    [
        Response(CONTENT[:300_000], len(CONTENT)),
        Response(CONTENT[:300_000], len(CONTENT), ConnectionResetError("reset by peer")),
        Response(CONTENT[:300_000], None, http.client.IncompleteRead(b"", 5)),
        Response(b"", len(CONTENT), TimeoutError("timed out")),
    ],
    ids=["closed early", "reset", "incomplete chunk", "timeout"],
)
def test_dropped_connection_is_retried_from_the_start(tmp_path, server, broken):
    server.answers = [broken, Response(CONTENT, len(CONTENT))]
    assert Source().read(FILE, reader) == CONTENT
    assert server.asked == ("https://one/f",) * 2
    assert cached(tmp_path) == ["some.bin.gz"]


def test_always_dropped_leaves_nothing_behind(tmp_path, server):
    server.answers = [Response(CONTENT[:1000], len(CONTENT)) for _ in range(6)]
    with pytest.raises(
        ValueError, match=r"closed after 1,000 of 1,024,000 bytes, 3 times"
    ) as caught:
        Source().read(FILE, reader)
    assert server.asked == ("https://one/f",) * 3 + ("https://two/f",) * 3
    assert cached(tmp_path) == []
    assert "\n" not in str(caught.value)


def test_wrong_checksum_goes_on_to_the_next_home(tmp_path, server):
    server.answers = [Response(b"something else"), Response(CONTENT)]
    assert Source().read(FILE, reader) == CONTENT
    assert server.asked == ("https://one/f", "https://two/f")


def test_wrong_checksum_everywhere(tmp_path, server):
    server.answers = [Response(b"something else"), Response(b"something else")]
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(ValueError, match=f"some.bin.gz.*content is {found}, expected {SHA256}"):
        Source().read(FILE, reader)
    assert cached(tmp_path) == []


def test_interrupted_download_leaves_nothing_behind(tmp_path, server):
    server.answers = [Response(CONTENT[:1000], None, KeyboardInterrupt())]
    with pytest.raises(KeyboardInterrupt):
        Source().read(FILE, reader)
    assert cached(tmp_path) == []


def test_endless_download_is_stopped(server, monkeypatch):
    monkeypatch.setattr("spikebit.simulator.data.files._LARGEST_DOWNLOAD", 1000)
    server.answers = [Response(CONTENT), urllib.error.URLError("offline")]
    with pytest.raises(ValueError, match=r"sends more than 1,000 bytes"):
        Source().read(FILE, reader)


def test_a_part_left_by_a_kill_is_no_file(tmp_path, server):
    home = tmp_path / "cache" / "spikebit" / "sub"
    home.mkdir(parents=True)
    (home / ".some.bin.gz.abc.part").write_bytes(CONTENT[:10])
    server.answers = [Response(CONTENT)]
    assert Source().read(FILE, reader) == CONTENT


def test_a_bad_file_in_the_cache_is_named(tmp_path, server):
    home = tmp_path / "cache" / "spikebit" / "sub"
    home.mkdir(parents=True)
    (home / "some.bin.gz").write_bytes(CONTENT[:10])
    with pytest.raises(ValueError, match=f"{home}/some.bin.gz has a wrong checksum"):
        Source().read(FILE, reader)
    assert server.asked == ()


@pytest.mark.parametrize("download", [True, False])
def test_no_network_says_where_it_looked_and_what_would_work(
    tmp_path, server, monkeypatch, download
):
    """One sentence with the file, all places, and the ways out."""
    server.answers = [urllib.error.URLError("Name or service not known")] * 9
    data, other = tmp_path / "data", tmp_path / "other"
    data.mkdir()
    other.mkdir()
    monkeypatch.setenv("SPIKEBIT_DATA", str(other))
    with pytest.raises(ValueError, match=r"t10k-images|train-images") as caught:
        load("fashion_mnist", data_dir=data, download=download)
    text = str(caught.value)
    places = [str(data), str(other), str(tmp_path / "cache" / "spikebit")]
    for part in [*places, "data_dir=", "fashion_mnist_sample", "'fashion-mnist'"]:
        assert part in text
    assert ("Name or service not known" in text) == download
    assert ("switched off" in text) != download
    assert "\n" not in text
    assert len(server.asked) == (2 if download else 0)  # each home once: offline is offline


def test_places_are_searched_in_order(tmp_path, server, monkeypatch):
    places = [tmp_path / name for name in ("data", "env", "cache")]
    monkeypatch.setenv("SPIKEBIT_DATA", str(places[1]))
    source = Source(places[0])
    found = [places[2] / "spikebit", places[1], places[1] / "sub", places[0], places[0] / "sub"]
    for folder in places:
        folder.mkdir(exist_ok=True)
    for folder in found:  # from the last to the first
        folder.mkdir(exist_ok=True)
        (folder / "some.bin").write_bytes(b"plain")
        assert source.find(FILE) == folder / "some.bin"
        (folder / "some.bin.gz").write_bytes(b"packed")
        assert source.find(FILE) == folder / "some.bin.gz"


def test_folders_and_files_mixed_up(tmp_path, server, monkeypatch):
    (tmp_path / "some.bin.gz").mkdir()
    with pytest.raises(ValueError, match=r"some.bin.gz is a folder, expected the data file"):
        Source(tmp_path).read(FILE, reader)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"data_dir='.*file' is a file, expected a folder"):
        Source(str(tmp_path / "file")).find(FILE)
    with pytest.raises(ValueError, match=r"data_dir='.*absent' is not there, expected a folder"):
        Source(str(tmp_path / "absent")).find(FILE)
    monkeypatch.setenv("SPIKEBIT_DATA", str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"SPIKEBIT_DATA='.*absent' is not there"):
        Source().find(FILE)


def test_unwritable_cache(tmp_path, server, monkeypatch):
    (tmp_path / "cache").write_bytes(b"a file where the cache should be")
    with pytest.raises(ValueError, match=r"spikebit/sub cannot be written \(Not a directory\)"):
        Source().read(FILE, reader)
    assert server.asked == ()
