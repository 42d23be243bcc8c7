"""Data files: where they are looked for, how they are downloaded, opened and checked.

Nothing here knows what a file means; the families (`images`, `spoken_digits`, `jsb`) bring a
reader. Checksums are of the *content*: a file that was unpacked or compressed anew is still the
same file, and a file of the right name with other content is not.
"""

import contextlib
import gzip
import hashlib
import http.client
import lzma
import os
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")
Progress = Callable[[str, int, int | None], None]
"""Called during a download as `progress(file name, bytes so far, bytes in all or None)`."""

_ATTEMPTS = 3  # times an address is asked again after the connection dropped midway
_TIMEOUT = 30.0  # [s] without a byte
_LARGEST_DOWNLOAD = 2**27  # [bytes]; the largest file of a known data set has 26 MB
_CHUNK = 2**18  # [bytes]


@runtime_checkable
class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Returns at most `size` bytes; none at the end."""
        ...


@dataclass(frozen=True)
class DataFile:
    """A published file: its name, the sub-folder it lives in, its checksum and its homes.

    Attributes:
        name: file name; a name that ends in `.gz` may also lie there unpacked, without the ending.
        folder: sub-folder of a data folder; the file may also lie in the data folder itself.
        sha256: checksum of the content, as the family's reader defines it.
        urls: public addresses, tried in turn.
    """

    name: str
    folder: str
    sha256: str
    urls: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Where data come from: folders in the order they are searched, then the network.

    Attributes:
        data_dir: folder given by the user, searched first. Then the folder named by the environment
            variable SPIKEBIT_DATA, then the user's cache (`$XDG_CACHE_HOME/spikebit`, else
            `~/.cache/spikebit`), which is also where downloads are stored.
        download: whether a file that is in none of these may be downloaded.
        progress: called while a download runs.
    """

    data_dir: str | os.PathLike[str] | None = None
    download: bool = True
    progress: Progress | None = None

    def places(self) -> list[Path]:
        """Returns the folders that are searched, in order.

        Raises:
            ValueError: data_dir or SPIKEBIT_DATA is not a folder.
        """
        given = {"data_dir": self.data_dir, "SPIKEBIT_DATA": os.environ.get("SPIKEBIT_DATA")}
        places = []
        for setting, value in given.items():
            if not value:
                continue
            place = Path(value).expanduser()
            if not place.is_dir():
                found = "a file" if place.exists() else "not there"
                raise ValueError(
                    f"{setting}={os.fspath(value)!r} is {found}, expected a folder that holds the "
                    "data files (or leave it out)."
                )
            places.append(place)
        return [*places, cache_dir()]

    def find(self, file: DataFile) -> Path | None:
        """Returns the path of the first file of that name, or None.

        Raises:
            ValueError: a folder bears the name of the file, or may not be searched.
        """
        names = [file.name, file.name.removesuffix(".gz")]
        for place in self.places():
            folders = (place / file.folder, place)
            for path in (folder / name for folder in folders for name in names):
                try:
                    if path.is_dir():
                        raise ValueError(f"{path} is a folder, expected the data file {file.name}.")
                    if path.exists():
                        return path
                except OSError as error:
                    raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
        return None

    def read(self, file: DataFile, reader: Callable[[Path, str], T]) -> T:
        """Finds or downloads a file and returns `reader(path, called)`.

        The reader checks the content and calls the file `called` in its errors. A download becomes
        a file of the cache only after the reader has accepted it.

        Raises:
            ValueError: the file is found nowhere, or the reader refuses it.
        """
        path = self.find(file)
        if path is not None:
            return reader(path, str(path))
        if not self.download:
            raise ValueError(self._missing(file, "downloading is switched off"))
        failures = []
        for url in file.urls:
            try:
                return self._download(file, url, reader)
            except _DownloadError as failure:
                failures.append(f"{url}: {failure}")
        raise ValueError(self._missing(file, f"the download failed ({'; '.join(failures)})"))

    def _missing(self, file: DataFile, why: str) -> str:
        places = ", ".join(str(place) for place in self.places())
        return (
            f"{file.name} was not found in {places} (nor in a sub-folder {file.folder!r} there) "
            f"and {why}: put the file into one of these folders or give data_dir=..., or use the "
            "embedded data set 'fashion_mnist_sample'."
        )

    def _download(self, file: DataFile, url: str, reader: Callable[[Path, str], T]) -> T:
        home = cache_dir() / file.folder
        try:
            home.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".part", dir=home)
        except OSError as error:
            raise ValueError(
                f"{home} cannot be written ({error.strerror}), so {file.name} cannot be "
                "downloaded: set XDG_CACHE_HOME to a folder you can write, or give data_dir=..."
            ) from error
        os.close(handle)
        part = Path(name)
        try:
            _transfer(url, part, file.name, self.progress)
            try:
                result = reader(part, f"{file.name} from {url}")
            except ValueError as error:
                raise _DownloadError(str(error).rstrip(".")) from error
            part.replace(home / file.name)
            return result
        finally:
            part.unlink(missing_ok=True)


class _DownloadError(Exception):
    """Why one address did not give the file."""


def cache_dir() -> Path:
    """Returns the folder in which downloads are kept; it need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spikebit"


def _transfer(url: str, path: Path, name: str, progress: Progress | None) -> None:
    """Writes what the address sends to path; asks again if the connection drops midway."""
    request = urllib.request.Request(url, headers={"User-Agent": "spikebit"})
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            response = urllib.request.urlopen(request, timeout=_TIMEOUT)
        except (OSError, http.client.HTTPException) as error:  # offline, not found: asking is vain
            raise _DownloadError(str(error)) from error
        try:
            with response, path.open("wb") as out:
                length = response.headers.get("Content-Length")
                total = int(length) if length and length.isdigit() else None
                done = 0
                while chunk := response.read(_CHUNK):
                    done += out.write(chunk)
                    if done > _LARGEST_DOWNLOAD:
                        raise _DownloadError(f"sends more than {_LARGEST_DOWNLOAD:,} bytes")
                    if progress is not None:
                        progress(name, done, total)
                if total is None or done == total:
                    return
                raise ConnectionError(f"the connection closed after {done:,} of {total:,} bytes")
        except (OSError, http.client.HTTPException) as error:
            if attempt == _ATTEMPTS:
                raise _DownloadError(f"{error}, {_ATTEMPTS} times") from error


@contextlib.contextmanager
def open_content(path: Path, called: str | None = None) -> Iterator[Readable]:
    """Opens a file for reading its content: gzip and xz are unpacked while reading.

    The compression is told from the first bytes, not from the name. Reading to the end checks the
    checksum that gzip and xz carry.

    Args:
        path: the file.
        called: its name in errors, else the path.

    Raises:
        ValueError: the file cannot be read, is empty, damaged or cut off.
    """
    called = called or str(path)
    try:
        with path.open("rb") as plain:
            first = plain.read(6)
            plain.seek(0)
            if not first:
                raise ValueError(f"{called} is empty (0 bytes), expected a data file.")
            if first[:2] == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=plain) as stream:
                    yield stream
            elif first == b"\xfd7zXZ\x00":
                with lzma.LZMAFile(plain) as stream:
                    yield stream
            else:
                yield plain
    except IsADirectoryError as error:
        raise ValueError(f"{called} is a folder, expected a data file.") from error
    except EOFError as error:
        raise ValueError(
            f"{called} is truncated: its compressed data stop before their end mark, expected a "
            "complete file."
        ) from error
    except (zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise ValueError(
            f"{called} is damaged ({error}), expected compressed data that unpack without error."
        ) from error
    except OSError as error:
        raise ValueError(f"{called} cannot be read: {error.strerror or error}.") from error


def check_sha256(called: str, found: str, expected: str | None) -> None:
    """Compares the checksum of a content with the published one, if one is given.

    Raises:
        ValueError: they differ.
    """
    if expected is not None and found != expected:
        raise ValueError(
            f"{called} has a wrong checksum: the SHA-256 of its content is {found}, expected "
            f"{expected}; replace it by the published file."
        )


def sha256(*parts: bytes) -> str:
    """Returns the SHA-256 of the parts one after the other, in hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
