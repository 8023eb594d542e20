"""What is printed holds no credentials, and a path stays what it is."""

from __future__ import annotations

import pytest

from kdcache.errors import ConfigError
from kdcache.urls import clean_text, clean_url, is_url, refuse_mistyped


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("https://user:pass@host:8080/a?X-Amz-Signature=abc#x", "https://host:8080/a"),
        ("https://token@host", "https://host"),
        ("https://a:b@c:d@host/p", "https://host/p"),
        ("az://container/p?sig=abc", "az://container/p"),
        ("folder/what?.zarr", "folder/what?.zarr"),
        ("/abs/user:pass@host/x", "/abs/user:pass@host/x"),
    ],
)
def test_a_url_is_shown_without_user_password_query_and_fragment(given: str, shown: str) -> None:
    assert clean_url(given) == shown
    assert clean_url(clean_url(given)) == shown


def test_urls_inside_a_message_are_cleaned_and_the_rest_is_kept() -> None:
    text = "GET http://u:p@h/x?sig=1 failed (at 'https://h2/y?token=2'), see s3://b/c."
    assert clean_text(text) == "GET http://h/x failed (at 'https://h2/y'), see s3://b/c."


def test_secrets_of_the_environment_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecretvalue")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "anothersecret")
    assert clean_text("key verysecretvalue, token anothersecret") == "key ***, token ***"


@pytest.mark.parametrize(
    ("place", "url"), [("s3://b", True), ("C:/x", False), ("a/b", False), ("file.py:factory", False)]
)
def test_only_a_scheme_makes_a_url(place: str, url: bool) -> None:
    assert is_url(place) is url


@pytest.mark.parametrize("path", ["s3//bucket/x", "s3:/bucket/x", "https:/host/x", "gs//b"])
def test_a_mistyped_url_is_no_folder_and_the_url_meant_is_named(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_mistyped(path)
    assert path.split("/")[0].rstrip(":") + "://" in caught.value.hint


@pytest.mark.parametrize("path", ["s3/x", "folder//x", "/s3//x", "s3.zarr", "./https:/x"])
def test_paths_are_paths(path: str) -> None:
    refuse_mistyped(path)
