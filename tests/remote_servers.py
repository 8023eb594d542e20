"""Real servers for the tests of remote stores: an S3 API, a static web server, a proxy that counts and breaks things.

All of them listen on 127.0.0.1 with a port the system chooses. The S3 server is moto's, in a process of its own.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "team-bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnTESTSECRETbPxRfiCYKEY",
    "AWS_REGION": "us-east-1",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        assert process.poll() is None, "the server did not start"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the server does not answer")


@contextmanager
def _process(arguments: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    try:
        _wait_for(port, process)
        yield
    finally:
        process.terminate()
        process.wait(timeout=10)


@contextmanager
def s3_server() -> Iterator[str]:
    """URL of a running S3 API with the bucket `BUCKET`."""
    port = free_port()
    with _process(["-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("PUT", f"/{BUCKET}")
        assert connection.getresponse().status == 200
        connection.close()
        yield f"http://127.0.0.1:{port}"


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """URL of `python -m http.server` over a folder."""
    port = free_port()
    with _process(["-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)], port):
        yield f"http://127.0.0.1:{port}"


@dataclass(frozen=True)
class Request:
    method: str
    path: str


@dataclass
class Fault:
    """What happens to requests that match, `times` times: an own answer, a late one, half of one, or none.

    kind: "500", "503", "403" (own answer, not forwarded), "late" (forwarded, answered after `seconds`), "truncated"
    (half of the body, then the connection ends), "lost" (forwarded, the connection ends without an answer), "stale"
    (a listing as it was at the first such request).
    """

    kind: str
    matches: Callable[[Request], bool] = lambda request: True
    times: int = 1
    seconds: float = 1.0


@dataclass
class Proxy:
    """A server in front of another: counts every request, and spoils the ones that faults match."""

    url: str
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    first_listing: dict[str, tuple[int, list[tuple[str, str]], bytes]] = field(default_factory=dict)
    before: Callable[[Request], None] | None = None

    def count(self) -> Counter[str]:
        return Counter(request.method for request in self.requests)

    def take_fault(self, request: Request) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.matches(request):
                fault.times -= 1
                return fault
        return None


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy
    upstream: str

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path)
        self.proxy.requests.append(request)
        if self.proxy.before is not None:
            self.proxy.before(request)
        fault = self.proxy.take_fault(request)
        if fault is not None and fault.kind.isdigit():
            code = "SlowDown" if fault.kind == "503" else "AccessDenied" if fault.kind == "403" else "InternalError"
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            self._answer(int(fault.kind), [("Content-Type", "application/xml")], text)
            return
        status, headers, answer = self._forward(body)
        if "list-type" in self.path:
            self.proxy.first_listing.setdefault(self.path, (status, headers, answer))
        if fault is None:
            self._answer(status, headers, answer)
        elif fault.kind == "late":
            time.sleep(fault.seconds)
            self.close_connection = True
        elif fault.kind == "lost":
            self._hang_up()
        elif fault.kind == "stale":
            self._answer(*self.proxy.first_listing[self.path])
        else:
            self._answer(status, headers, answer, keep=len(answer) // 2)
            self._hang_up()

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        host, port = self.upstream.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        connection.request(self.command, self.path, body=body or None, headers=headers)
        response = connection.getresponse()
        answer = response.read()
        kept = [
            (name, value)
            for name, value in response.getheaders()
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "server", "date")
        ]
        if self.command == "HEAD":
            kept.append(("Content-Length", response.getheader("Content-Length") or "0"))
        connection.close()
        return response.status, kept, answer

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, keep: int | None = None) -> None:
        try:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body if keep is None else body[:keep])
            self.wfile.flush()
        except OSError:
            self.close_connection = True  # the client has given up: that is what a late answer is for

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PROPFIND = _serve  # noqa: N815


@contextmanager
def proxy_to(upstream: str) -> Iterator[Proxy]:
    """A proxy in front of a server, in threads of this process."""

    class Handler(_ProxyHandler):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = Proxy(url=f"http://127.0.0.1:{server.server_address[1]}")
    Handler.proxy, Handler.upstream = proxy, upstream
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def s3_environment(endpoint: str) -> dict[str, str]:
    """Variables that make S3 requests of a process go to an endpoint, with short waits."""
    return {
        **CREDENTIALS,
        "AWS_ENDPOINT_URL": endpoint,
        "KDCACHE_REMOTE_TIMEOUT": os.environ.get("KDCACHE_REMOTE_TIMEOUT", "5"),
        "KDCACHE_REMOTE_WAIT": "0.02",
        "KDCACHE_REMOTE_ATTEMPTS": os.environ.get("KDCACHE_REMOTE_ATTEMPTS", "4"),
    }
