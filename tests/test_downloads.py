"""Downloads that break off, stall or fail, of a server that does so."""

import errno
import http.server
import io
import os
import re
import socket
import ssl
import tarfile
import threading

import pytest
from lhotse.recipes import download_librispeech

from kdlib import downloads
from kdlib.downloads import fetch_and_unpack
from kdlib.errors import RecipeError

CONTENT = os.urandom(200_000)
REMEDY = "run stage 0 again"


@pytest.fixture
def server(tmp_path):
    """Serves an archive: all that is asked of it, or half of that before it closes or falls silent (``mode``)."""
    with tarfile.open(tmp_path / "dev-clean.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("LibriSpeech/dev-clean/a.flac")
        member.size = len(CONTENT)
        tar.addfile(member, io.BytesIO(CONTENT))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(listening.archive)))
            self.end_headers()

        def do_GET(self):
            first = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
            listening.asked.append(first)
            rest = listening.archive[first:]
            self.send_response(206)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest if listening.mode == "whole" else rest[:len(rest) // 2])
            self.wfile.flush()
            if listening.mode == "silent":
                listening.ended.wait()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.archive, listening.asked, listening.mode = (tmp_path / "dev-clean.tar.gz").read_bytes(), [], "whole"
        listening.ended = threading.Event()
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield listening
        listening.ended.set()
        listening.shutdown()


def fetch(server, folder):
    url = f"http://127.0.0.1:{server.server_port}"
    fetch_and_unpack(lambda: download_librispeech(folder, ["dev-clean"], base_url=url),
                     lambda: (f"{url}/12/dev-clean.tar.gz", folder / "dev-clean.tar.gz"), REMEDY)


def test_what_breaks_off_goes_on(server, tmp_path):
    """The end of a connection that was closed too early is no error to the one who reads."""
    folder, size = tmp_path / "download", len(server.archive)
    server.mode = "half"
    with pytest.raises(RecipeError, match=f"dev-clean.tar.gz broke off after {size // 2:,} of {size:,} bytes, which are kept: "
                                          f"check the network and {REMEDY}"):
        fetch(server, folder)
    server.mode = "whole"
    fetch(server, folder)
    assert server.asked == [0, size // 2]
    assert (folder / "LibriSpeech" / "dev-clean" / "a.flac").read_bytes() == CONTENT


def test_a_damaged_archive_is_fetched_anew(server, tmp_path):
    folder, good = tmp_path / "download", server.archive
    server.archive = b"<html>no such page</html>"
    with pytest.raises(RecipeError, match=f"dev-clean.tar.gz is damaged .* and was removed: {REMEDY}"):
        fetch(server, folder)
    server.archive = good
    fetch(server, folder)
    assert server.asked == [0, 0] and (folder / "LibriSpeech" / "dev-clean" / "a.flac").read_bytes() == CONTENT


def test_a_silent_server_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "SILENCE", 0.5)
    server.mode = "silent"
    with pytest.raises(RecipeError, match=f"dev-clean.tar.gz cannot be downloaded from http.*timed out.*{REMEDY}"):
        fetch(server, tmp_path / "download")
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("error", [ssl.SSLError(1, "bad record mac"), OSError(errno.EHOSTUNREACH, "No route to host"),
                                   ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
                                   http.client.IncompleteRead(b""), ValueError("unknown url type: 'x/a.tgz'")])
def test_a_network_that_fails_is_one_error(tmp_path, error):
    def fails():
        raise error

    with pytest.raises(RecipeError, match="a.tgz cannot be downloaded from http://x/a.tgz .*: check the network and run"):
        fetch_and_unpack(fails, lambda: ("http://x/a.tgz", tmp_path / "a.tgz"), REMEDY)


def test_a_full_disk_is_no_failure_of_the_network(tmp_path):
    def fails():
        raise OSError(errno.ENOSPC, "No space left on device", "a.tgz")

    with pytest.raises(OSError, match="No space left"):
        fetch_and_unpack(fails, lambda: ("http://x/a.tgz", tmp_path / "a.tgz"), REMEDY)
