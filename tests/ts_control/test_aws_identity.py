"""Amazon's signature of requests, by the examples that Amazon publishes, and its answers."""

from __future__ import annotations

import pytest

from ts_base.errors import BadPacket
from ts_control.aws_identity import (
    AwsCredentials,
    ask_container,
    aws_token_of_untrusted,
    credentials_of_untrusted,
    signed,
    word_of_untrusted,
)
from ts_control.http1 import Reply
from ts_control.key_making import FORM, Ask

# From the test suite of Signature Version 4: get-vanilla and post-x-www-form-urlencoded.
KEYS = AwsCredentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
SCOPE = "20150830/us-east-1/service/aws4_request"
DATE = ("X-Amz-Date", "20150830T123600Z")


@pytest.mark.parametrize(
    ("ask", "signature"),
    [
        (
            Ask("GET", "https://example.amazonaws.com/", (DATE,)),
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        (
            Ask("POST", "https://example.amazonaws.com/", (FORM, DATE), b"Param1=value1"),
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
    ],
)
def test_signature_is_amazons(ask: Ask, signature: str) -> None:
    assert signed(ask, KEYS, SCOPE).headers[-1][1].endswith(f"Signature={signature}")
    assert "wJalr" not in repr(KEYS)


NOT_ALL = b'{"AccessKeyId":1,"SecretAccessKey":"b","Token":"c"}'


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"AccessKeyId":"a"}', NOT_ALL])
def test_what_is_no_credentials_is_refused(body: bytes) -> None:
    for read in (credentials_of_untrusted, aws_token_of_untrusted):
        with pytest.raises(BadPacket):
            read(Reply(200, {}, body))


@pytest.mark.parametrize("body", [b"", b"<p>", b"two words", b"a" * 10_000, b"\xff"])
def test_what_is_no_word_is_refused(body: bytes) -> None:
    with pytest.raises(BadPacket):
        word_of_untrusted(Reply(200, {}, body))


@pytest.mark.parametrize(
    ("path", "whole", "url"),
    [
        ("/v2/x", None, "http://169.254.170.2/v2/x"),
        (None, "http://169.254.170.23/v1", "http://169.254.170.23/v1"),
        (None, "https://example.com/c", "https://example.com/c"),
        (None, "http://example.com/c", None),
        (None, "ftp://127.0.0.1/", None),
        (None, None, None),
    ],
)
def test_credentials_come_from_places_to_trust(path: str | None, whole: str | None, url: str | None) -> None:
    names = {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": path, "AWS_CONTAINER_CREDENTIALS_FULL_URI": whole}
    ask = ask_container({name: value for name, value in names.items() if value})
    assert (ask.url if ask else None) == url
