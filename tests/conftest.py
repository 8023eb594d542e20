"""Servers that several test files need; started when the first test asks for them, ended with the session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.remote_servers import BUCKET, Proxy, proxy_to, s3_environment, s3_server


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A running S3 API."""
    with s3_server() as url:
        yield url


@pytest.fixture
def s3_proxy(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A counting, fault-injecting proxy in front of the S3 API; S3 requests of this process go through it."""
    with proxy_to(s3_endpoint) as proxy:
        for name, value in s3_environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def s3_url(s3_proxy: Proxy, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A prefix of the bucket that no other test uses."""
    return f"s3://{BUCKET}/{tmp_path.parent.name}/{tmp_path.name}"
