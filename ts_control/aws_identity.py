"""An ID token from Amazon's cloud: where a machine or container has its credentials, and what STS is asked with them.

Owns: the requests, their signature (Signature Version 4, as AWS documents it) and their answers. Refuses to know:
sockets, the environment, the clock; the date is an argument. Profiles on disk are not read. Upstream: wif.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode, urlsplit

from ts_base.errors import BadPacket
from ts_control.http1 import Reply, is_web_page
from ts_control.key_making import FORM, LONGEST_ANSWER_TEXT, Ask, is_token

METADATA = "http://169.254.169.254"
CONTAINER = "http://169.254.170.2"
NEARBY = ("169.254.170.2", "169.254.170.23", "fd00:ec2::23")  # hosts that hand credentials to containers by plain HTTP
ON_ECS = "ECS_CONTAINER_METADATA_URI_V4"  # set in every container there
LIFETIME = 300  # seconds of the ID token
REGION = re.compile(r"[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}")
TOKEN = re.compile(rb"<WebIdentityToken>\s*([!-;=-~]{1,%d})\s*</WebIdentityToken>" % LONGEST_ANSWER_TEXT)


@dataclass(frozen=True, slots=True)
class AwsCredentials:
    """Who asks. Shows nothing of it."""

    key_id: str = field(repr=False)
    secret: str = field(repr=False)
    session: str = field(default="", repr=False)


# Where credentials are


def credentials_in(environment: Mapping[str, str]) -> AwsCredentials | None:
    key_id, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    if not key_id or not secret:
        return None
    return AwsCredentials(key_id, secret, environment.get("AWS_SESSION_TOKEN", ""))


def region_in(environment: Mapping[str, str]) -> str:
    return environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or ""


def ask_container(environment: Mapping[str, str]) -> Ask | None:
    """In a task of ECS, or a pod of EKS; None elsewhere, and where the address is no place to trust."""
    path, whole = (environment.get(f"AWS_CONTAINER_CREDENTIALS_{kind}_URI") for kind in ("RELATIVE", "FULL"))
    url = f"{CONTAINER}{path}" if path else whole
    if not url:
        return None
    parts = urlsplit(url)
    is_near = parts.hostname in (*NEARBY, "127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_near):
        return None
    token = environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN")
    return Ask("GET", url, (("Authorization", token),) if token else ())


def ask_metadata_token(environment: Mapping[str, str]) -> Ask | None:
    """On a machine of EC2 it is answered; that is how one is recognised. The variables are Amazon's own."""
    if environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    return Ask("PUT", f"{_metadata(environment)}/latest/api/token", (("X-aws-ec2-metadata-token-ttl-seconds", "60"),))


def ask_metadata(environment: Mapping[str, str], token: str, path: str) -> Ask:
    return Ask("GET", f"{_metadata(environment)}/latest/meta-data/{path}", (("X-aws-ec2-metadata-token", token),))


def _metadata(environment: Mapping[str, str]) -> str:
    return (environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or METADATA).rstrip("/")


ROLES = "iam/security-credentials/"
PLACE = "placement/region"


# Answers


def word_of_untrusted(reply: Reply) -> str:
    """A token, a role's name, a region: one line of text."""
    text = reply.body.strip().decode("latin-1")
    if is_web_page(reply) or not is_token(text):
        raise BadPacket("a web page" if is_web_page(reply) else "no such word")
    return text


def credentials_of_untrusted(reply: Reply) -> AwsCredentials:
    try:
        answer = json.loads(reply.body)
    except (ValueError, RecursionError):
        answer = None
    found = answer if isinstance(answer, dict) else {}
    texts = [found.get(name) for name in ("AccessKeyId", "SecretAccessKey", "Token")]
    key_id, secret, session = (text if isinstance(text, str) and is_token(text) else "" for text in texts)
    if not key_id or not secret or not session:
        raise BadPacket("no credentials")
    return AwsCredentials(key_id, secret, session)


def aws_token_of_untrusted(reply: Reply) -> str:
    """The ID token in the answer of STS, which is XML of one known shape."""
    found = TOKEN.search(reply.body)
    if found is None:
        raise BadPacket("no ID token")
    return found[1].decode()


# What STS is asked


def ask_sts(credentials: AwsCredentials, region: str, audience: str, date: str, environment: Mapping[str, str]) -> Ask:
    """GetWebIdentityToken. `date` is now as `20260131T235959Z`."""
    if not REGION.fullmatch(region):
        raise BadPacket("no region")
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    base = (environment.get("AWS_ENDPOINT_URL_STS") or f"https://sts.{region}.{domain}").rstrip("/")
    form = urlencode(
        {
            "Action": "GetWebIdentityToken",
            "Version": "2011-06-15",
            "Audience.member.1": audience,
            "DurationSeconds": str(LIFETIME),
            "SigningAlgorithm": "ES384",
        }
    ).encode()
    headers: list[tuple[str, str]] = [FORM, ("X-Amz-Date", date)]
    if credentials.session:
        headers.append(("X-Amz-Security-Token", credentials.session))
    unsigned = Ask("POST", f"{base}/", tuple(headers), form)
    return signed(unsigned, credentials, f"{date[:8]}/{region}/sts/aws4_request")


def signed(ask: Ask, credentials: AwsCredentials, scope: str) -> Ask:
    """The request with its `Authorization`: all its headers and its body are signed."""
    parts = urlsplit(ask.url)
    headers = sorted([("host", parts.netloc), *((name.lower(), value.strip()) for name, value in ask.headers)])
    names = ";".join(name for name, _ in headers)
    canonical = "\n".join(
        [
            ask.method,
            quote(parts.path or "/"),
            parts.query,
            *(f"{name}:{value}" for name, value in headers),
            "",
            names,
            hashlib.sha256(ask.body).hexdigest(),
        ]
    )
    date = dict(headers)["x-amz-date"]
    to_sign = "\n".join(["AWS4-HMAC-SHA256", date, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = _signing_key(credentials.secret, scope.split("/"))
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    login = f"AWS4-HMAC-SHA256 Credential={credentials.key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    return Ask(ask.method, ask.url, (*ask.headers, ("Authorization", login)), ask.body)


def _signing_key(secret: str, scope: Sequence[str]) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in scope:
        key = hmac.digest(key, part.encode(), "sha256")
    return key
