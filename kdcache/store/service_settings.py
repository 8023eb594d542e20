"""What an object-store client is told: time-outs, and for S3 the credentials it would not find. No requests.

obstore reads AWS_* variables itself and asks the machine's own identity last; it does not read the files that
`aws configure` writes, so their static keys are handed to it here. Nothing is logged, stored or printed.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from kdcache.store.retries import Patience

_OWN_IDENTITY = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
_KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}


def client_settings(patience: Patience, *, writing: bool) -> dict[str, Any]:
    """Time-outs of one client; retries are ours. A write has no byte to wait for until all of it is sent."""
    timeout = timedelta(seconds=patience.timeout)
    limits = {"timeout": 4 * timeout} if writing else {"timeout": 40 * timeout, "read_timeout": timeout}
    return {
        "client_options": {"allow_http": True, "connect_timeout": min(timeout, timedelta(seconds=10)), **limits},
        "retry_config": {"max_retries": 0},
    }


def s3_settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """Settings for an S3 client beyond what it reads from the environment itself.

    Args:
        environment: AWS_* variables; AWS_PROFILE and AWS_SHARED_CREDENTIALS_FILE choose profile and file.
    """
    settings: dict[str, Any] = {}
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if endpoint:
        settings["endpoint"] = endpoint
    if not (environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")):
        settings["region"] = _profile_value(environment, "config", "region") or "us-east-1"
    if any(environment.get(name) for name in _OWN_IDENTITY):
        return settings
    keys = {ours: _profile_value(environment, "credentials", name) for name, ours in _KEYS.items()}
    if keys["access_key_id"] and keys["secret_access_key"]:
        settings |= {name: value for name, value in keys.items() if value}
    return settings


def _profile_value(environment: Mapping[str, str], kind: str, name: str) -> str:
    stated = environment.get("AWS_SHARED_CREDENTIALS_FILE" if kind == "credentials" else "AWS_CONFIG_FILE")
    file = Path(stated) if stated else Path.home() / ".aws" / kind
    profile = environment.get("AWS_PROFILE") or "default"
    section = f"profile {profile}" if kind == "config" and profile != "default" else profile
    parser = configparser.RawConfigParser()
    try:
        parser.read(file)
        return parser.get(section, name, fallback="")
    except (configparser.Error, OSError, UnicodeDecodeError):
        return ""  # a damaged file is as good as none: the request then fails with "access refused"
