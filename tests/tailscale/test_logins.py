"""Logging in without an auth key's text: OAuth secrets, workloads, where ID tokens come from, and what goes wrong."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
import trio
from login_scripts import API, SECRET, TAGS, TOKEN, Api, an_api, answer
from secret_spy import Spy
from tailnet_scripts import host_of, runtime_of, until
from trio.testing import MockClock

import tailscale
import tailscale.sync
from tailscale._config import Config, Preferences, logins
from tailscale.runtime.key_maker import KeyMaker
from tailscale.testing import Tailnet
from ts_control.errors import KeyNotMade, RequestRefused

OAUTH = f"{SECRET}?baseURL={API}"
FOREVER = {"ready_timeout": 40.0}


@pytest.fixture
async def api(tailnet: Tailnet) -> AsyncIterator[Api]:
    async with an_api(tailnet) as api:
        yield api


def a_maker(net: Tailnet, environment: dict[str, str] | None = None, **options: Any) -> KeyMaker:
    """For a workload whose control server is on this machine."""
    config = Config(options.pop("control_url", API), Preferences("a"), **options)
    return KeyMaker(config, host_of(net, "a"), environment or {})


def basic(headers: dict[str, str]) -> str:
    return base64.b64decode(headers["authorization"].removeprefix("Basic ")).decode()


# What is asked


async def test_oauth_secret_makes_a_key_and_never_goes_to_control(
    autojump_clock: MockClock, api: Api, tailnet: Tailnet
) -> None:
    a = await tailnet.device("a", auth_key=OAUTH, tags=TAGS)
    assert a.node.tags == TAGS
    token, key = api.asked
    assert token.line == "POST /api/v2/oauth/token HTTP/1.1"
    assert token.body == b"grant_type=client_credentials"
    assert (
        base64.b64decode(token.headers["authorization"].removeprefix("Basic ")).decode() == f"some-client-id:{SECRET}"
    )
    assert key.line == "POST /api/v2/tailnet/-/keys HTTP/1.1"
    assert key.headers["authorization"] == f"Bearer {TOKEN}"
    assert json.loads(key.body)["capabilities"]["devices"]["create"] == {
        "reusable": False,
        "ephemeral": True,
        "preauthorized": False,
        "tags": list(TAGS),
    }


@pytest.mark.parametrize(
    ("behind", "ephemeral", "preauthorized"),
    [("", True, False), ("&ephemeral=false", False, False), ("&preauthorized=true&ephemeral=1", True, True)],
)
async def test_oauth_attributes(
    autojump_clock: MockClock, api: Api, tailnet: Tailnet, behind: str, ephemeral: bool, preauthorized: bool
) -> None:
    await a_maker(tailnet, auth_key=OAUTH + behind).take(TAGS)
    create = json.loads(api.asked[1].body)["capabilities"]["devices"]["create"]
    assert (create["ephemeral"], create["preauthorized"]) == (ephemeral, preauthorized)


@pytest.mark.parametrize(
    ("behind", "ephemeral", "preauthorized"),
    [("", True, False), ("?preauthorized=true", False, True), ("?ephemeral=true", True, False)],
)
async def test_workload_exchanges_its_token(
    autojump_clock: MockClock, api: Api, tailnet: Tailnet, behind: str, ephemeral: bool, preauthorized: bool
) -> None:
    maker = a_maker(tailnet, client_id=f"id-1{behind}", id_token="a.b.c")
    assert await maker.take(TAGS) == api.keys[0]
    token, key = api.asked
    assert token.line == "POST /api/v2/oauth/token-exchange HTTP/1.1"
    assert dict(parse_qsl(token.body.decode(), keep_blank_values=True)) == {
        "client_id": "id-1",
        "code": "",
        "grant_type": "authorization_code",
        "jwt": "a.b.c",
    }
    assert basic(key.headers) == f"{TOKEN}:"
    create = json.loads(key.body)["capabilities"]["devices"]["create"]
    assert (create["ephemeral"], create["preauthorized"]) == (ephemeral, preauthorized)


async def test_github_actions_is_found_by_its_variables(autojump_clock: MockClock, api: Api, tailnet: Tailnet) -> None:
    environment = {
        "ACTIONS_ID_TOKEN_REQUEST_URL": f"{API}/github?api-version=2.0",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "runner",
    }
    await a_maker(tailnet, environment, client_id="id-1", audience="api.tailscale.com/id-1").take(TAGS)
    assert api.asked[0].line == "GET /github?api-version=2.0&audience=api.tailscale.com%2Fid-1 HTTP/1.1"
    assert api.asked[0].headers["authorization"] == "Bearer runner"
    assert b"jwt=github-id-token" in api.asked[1].body


async def test_google_cloud_is_found_by_its_metadata(autojump_clock: MockClock, api: Api, tailnet: Tailnet) -> None:
    environment = {"GCE_METADATA_HOST": "127.0.0.1", "HTTP_PROXY": "http://nobody:1"}
    environment["NO_PROXY"] = "*"
    await a_maker(tailnet, environment, client_id="id-1", audience="aud").take(TAGS)
    assert api.asked[0].headers["metadata-flavor"] == "Google"
    assert "audience=aud&format=full" in api.asked[0].line
    assert b"jwt=google-id-token" in api.asked[1].body


CREDENTIALS = {"AccessKeyId": "AKID", "SecretAccessKey": "aws-secret", "Token": "aws-session", "Code": "Success"}
STS = {"AWS_ENDPOINT_URL_STS": f"{API}/sts"}
STS_ANSWER = (
    b"<GetWebIdentityTokenResponse><WebIdentityToken>aws.id.token</WebIdentityToken></GetWebIdentityTokenResponse>"
)


async def test_amazons_machine_is_found_by_its_metadata(autojump_clock: MockClock, api: Api, tailnet: Tailnet) -> None:
    api.amazon = {
        "/latest/api/token": (200, b"metadata-token"),
        "/latest/meta-data/iam/security-credentials/": (200, b"my-role"),
        "/latest/meta-data/iam/security-credentials/my-role": (200, CREDENTIALS),
        "/latest/meta-data/placement/region": (200, b"eu-central-1"),
        "/sts/": (200, STS_ANSWER),
    }
    environment = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": API, "GCE_METADATA_HOST": "127.0.0.1", **STS}
    await a_maker(tailnet, environment, client_id="id-1", audience="aud").take(TAGS)
    assert [line.split()[:2] for line in api.lines[:5]] == [
        ["PUT", "/latest/api/token"],
        ["GET", "/latest/meta-data/iam/security-credentials/"],
        ["GET", "/latest/meta-data/iam/security-credentials/my-role"],
        ["GET", "/latest/meta-data/placement/region"],
        ["POST", "/sts/"],
    ]
    assert api.asked[1].headers["x-aws-ec2-metadata-token"] == "metadata-token"
    asked = api.asked[4]
    form = dict(parse_qsl(asked.body.decode()))
    assert (form["Action"], form["Audience.member.1"], form["SigningAlgorithm"]) == (
        "GetWebIdentityToken",
        "aud",
        "ES384",
    )
    assert "/eu-central-1/sts/aws4_request" in asked.headers["authorization"]
    assert asked.headers["x-amz-security-token"] == "aws-session"
    assert b"jwt=aws.id.token" in api.asked[5].body


async def test_amazons_container_is_found_by_its_variables(
    autojump_clock: MockClock, api: Api, tailnet: Tailnet
) -> None:
    """After Google's metadata, as upstream has it; the credentials are those of the task."""
    api.amazon = {"/creds": (200, CREDENTIALS), "/sts/": (200, STS_ANSWER)}
    environment = {
        "ECS_CONTAINER_METADATA_URI_V4": "http://169.254.170.2/v4/x",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{API}/creds",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": "pod-token",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REGION": "us-east-1",
        **STS,
    }
    await a_maker(tailnet, environment, client_id="id-1", audience="aud").take(TAGS)
    assert [line.split()[1] for line in api.lines[:2]] == ["/creds", "/sts/"]
    assert api.asked[0].headers["authorization"] == "pod-token"
    assert b"jwt=aws.id.token" in api.asked[2].body


@pytest.mark.parametrize(
    ("changes", "answers", "words"),
    [
        ({"AWS_REGION": ""}, {}, "placement/region"),
        ({"AWS_REGION": "nowhere/../x"}, {}, "no region"),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://198.51.100.7/creds"}, {}, "security-credentials"),
        ({"AWS_ENDPOINT_URL_STS": "http://198.51.100.7"}, {}, "no place for a secret"),
        ({}, {"/creds": (200, b"<html>")}, "no credentials"),
        ({}, {"/creds": (403, b"no")}, "refused with HTTP 403"),
        (
            {},
            {"/sts/": (403, b"<E><Error><Code>AccessDenied</Code><Message>aws-session</Message></Error></E>")},
            "AccessDenied",
        ),
        ({}, {"/sts/": (200, b"<html>aws-secret</html>")}, "no ID token"),
        ({}, {"/sts/": (302, b"")}, "redirect"),
    ],
)
async def test_amazon_that_gives_no_token_is_a_sentence_without_secrets(
    autojump_clock: MockClock,
    api: Api,
    tailnet: Tailnet,
    changes: dict[str, str],
    answers: dict[str, tuple[int, object]],
    words: str,
) -> None:
    api.amazon = {"/creds": (200, CREDENTIALS), "/sts/": (200, STS_ANSWER), **answers}
    environment = {
        "ECS_CONTAINER_METADATA_URI_V4": "x",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{API}/creds",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REGION": "us-east-1",
        **STS,
        **changes,
    }
    with pytest.raises(KeyNotMade, match=words) as caught:
        await a_maker(tailnet, environment, client_id="id-1", audience="aud").take(TAGS)
    assert not [secret for secret in ("aws-secret", "aws-session", "AKID") if secret in str(caught.value)]


async def test_amazon_that_is_busy_is_tried_again(autojump_clock: MockClock, api: Api, tailnet: Tailnet) -> None:
    api.amazon = {"/sts/": (429, b"slow down")}
    keys = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "aws-secret", "AWS_REGION": "us-east-1"}
    environment = {"ECS_CONTAINER_METADATA_URI_V4": "x", "AWS_EC2_METADATA_DISABLED": "true", **keys, **STS}
    with pytest.raises(RequestRefused):
        await a_maker(tailnet, environment, client_id="id-1", audience="aud").take(TAGS)


async def test_without_a_provider_it_says_what_to_pass(autojump_clock: MockClock, api: Api, tailnet: Tailnet) -> None:
    with pytest.raises(KeyNotMade, match=r"no ID token is found here.*id_token="):
        await a_maker(tailnet, client_id="id-1", audience="aud").take(TAGS)


async def test_id_token_comes_from_a_callable_or_a_file(
    autojump_clock: MockClock, api: Api, tailnet: Tailnet, tmp_path: Path
) -> None:
    async def fresh() -> str:
        await trio.lowlevel.checkpoint()
        return "from-a-function"

    await a_maker(tailnet, client_id="id-1", id_token=fresh).take(TAGS)
    assert b"jwt=from-a-function" in api.asked[0].body
    (tmp_path / "token").write_text("from-a-file\n")
    login = logins(None, "id-1", f"file:{tmp_path / 'token'}", None)
    await a_maker(tailnet, client_id="id-1", id_token=login.id_token).take(TAGS)
    assert b"jwt=from-a-file" in api.asked[2].body


# When it is asked


async def test_nothing_is_asked_while_the_stored_state_is_good(
    autojump_clock: MockClock, api: Api, tailnet: Tailnet
) -> None:
    store = tailscale.MemoryStore()
    async with tailnet.device("a", auth_key=OAUTH, tags=TAGS, state=store):
        pass
    asked = len(api.asked)
    async with tailnet.device("a", auth_key=OAUTH, tags=TAGS, state=store) as again:
        assert again.node.tags == TAGS
    assert len(api.asked) == asked == 2


async def test_forced_login_asks_although_the_state_is_good(
    autojump_clock: MockClock, api: Api, tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tailscale.MemoryStore()
    async with tailnet.device("a", auth_key=OAUTH, tags=TAGS, state=store) as a:
        before = a.netmap and a.netmap.self_node.key
    monkeypatch.setenv("TSNET_FORCE_LOGIN", "1")
    async with tailnet.device("a", auth_key=OAUTH, tags=TAGS, state=store) as a:
        await until(lambda: a.netmap is not None and a.netmap.self_node.key != before)
    assert len(api.keys) == 2


async def test_key_that_control_has_not_seen_is_not_made_twice(
    autojump_clock: MockClock, api: Api, tailnet: Tailnet
) -> None:
    maker = a_maker(tailnet, auth_key=OAUTH)
    first = await maker.take(TAGS)
    assert await maker.take(TAGS) == first
    assert await maker.take(("tag:other",)) != first
    maker.forget()
    assert await maker.take(("tag:other",)) != first
    assert len(api.keys) == 3


# What goes wrong, in the words of a user's error

PAGE = answer(200, b"<html>sign in</html>", "Content-Type: text/html")
REFUSED = answer(401, {"message": "API token invalid"})
BAD_TAGS = answer(400, {"message": "requested tags [tag:ci] are invalid or not permitted"})
MOVED = answer(307, b"", "Location: http://elsewhere.example/")
HUGE = b"HTTP/1.1 200 OK\r\nContent-Length: 10485760\r\n\r\n" + b"x" * (1 << 20)

NEVER = [
    (f"{SECRET}?baseURL={API}", (), [], r"tagged devices only.*tags="),
    (f"{SECRET}?baseURL=http://api.example", TAGS, [], r"http://api\.example is no place for a secret.*https"),
    (f"{SECRET}?colour=red", TAGS, [], r"no attribute 'colour'.*baseURL, ephemeral, preauthorized"),
    (f"{SECRET}?ephemeral=maybe", TAGS, [], r"neither true nor false"),
    (OAUTH, TAGS, [PAGE], r"/oauth/token answered with a web page"),
    (OAUTH, TAGS, [REFUSED], r"refused with HTTP 401: API token invalid.*Check the secret"),
    (OAUTH, TAGS, [answer(200, {"access_token": "t"}), BAD_TAGS], r"HTTP 400: requested tags.*may write auth keys"),
    (OAUTH, TAGS, [answer(200, {"access_token": "t"}), answer(200, {})], r"keys answered with no key"),
    (OAUTH, TAGS, [MOVED], r"redirect, and secrets are carried nowhere else"),
    (OAUTH, TAGS, [HUGE], r"nonsense \(HTTP answer of more than"),
    (OAUTH, TAGS, [b"\x00\x01garbage\r\n\r\n"], r"nonsense"),
    (OAUTH, TAGS, [answer(200, b"[" * 60000)], r"answered with no access token"),
]


@pytest.mark.parametrize(("key", "tags", "answers", "sentence"), NEVER, ids=[row[3][:24] for row in NEVER])
async def test_what_waiting_does_not_change_is_told_at_once(
    autojump_clock: MockClock,
    api: Api,
    tailnet: Tailnet,
    key: str,
    tags: tuple[str, ...],
    answers: list[bytes],
    sentence: str,
) -> None:
    api.answers = list(answers)
    began = trio.current_time()
    with pytest.raises(tailscale.AuthKeyNotMade, match=f"no auth key could be made: .*{sentence}") as caught:
        await tailnet.device("a", auth_key=key, tags=tags)
    assert isinstance(caught.value, tailscale.AuthKeyRejected | PermissionError)
    assert trio.current_time() - began < 1
    assert SECRET not in str(caught.value)
    if not answers:
        assert not api.asked


LATER = [
    ([answer(500, b"<html>oops</html>", "Content-Type: text/html")], r"HTTP 500: a web page"),
    ([answer(429, {"message": "slow down"}, "Retry-After: 20")], r"HTTP 429: slow down, and asks for 20 s of peace"),
    ([b""], r"did not answer within 10 s"),
    ([b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"], r"broke off"),
]


@pytest.mark.parametrize(("answers", "sentence"), LATER, ids=[row[1][:12] for row in LATER])
async def test_what_may_pass_is_waited_for_until_the_deadline(
    autojump_clock: MockClock, api: Api, tailnet: Tailnet, answers: list[bytes], sentence: str
) -> None:
    api.answers = list(answers)
    with pytest.raises(tailscale.ControlUnreachable, match=f"within 40 s: .*({sentence}).*ready_timeout="):
        await tailnet.device("a", auth_key=OAUTH, tags=TAGS, **FOREVER)
    assert len(api.asked) < 60


async def test_what_passes_lets_the_device_in(autojump_clock: MockClock, api: Api, tailnet: Tailnet) -> None:
    busy = answer(503, b"later", "Retry-After: 7")
    token = answer(200, {"access_token": TOKEN})
    api.answers = [busy, token, answer(200, {"key": tailnet.auth_key(tags=TAGS)})]
    began = trio.current_time()
    a = await tailnet.device("a", auth_key=OAUTH, tags=TAGS)
    assert a.node.tags == TAGS
    assert 7 <= trio.current_time() - began < 10


async def test_wrong_clock_does_not_stretch_a_date_to_wait_for(
    autojump_clock: MockClock, api: Api, tailnet: Tailnet
) -> None:
    host_of(tailnet, "a")
    tailnet.set_clock("a", ahead=-86_400 * 400)
    late = answer(429, b"", "Retry-After: Mon, 07 Dec 2099 00:00:00 GMT")
    api.answers = [late, answer(200, {"access_token": TOKEN}), answer(200, {"key": tailnet.auth_key(tags=TAGS)})]
    began = trio.current_time()
    await tailnet.device("a", auth_key=OAUTH, tags=TAGS)
    assert trio.current_time() - began < 15


async def test_refusals_that_may_pass_carry_their_pause(autojump_clock: MockClock, api: Api, tailnet: Tailnet) -> None:
    api.answers = [answer(429, b"", "Retry-After: 20")]
    with pytest.raises(RequestRefused) as caught:
        await a_maker(tailnet, auth_key=OAUTH).take(TAGS)
    assert (caught.value.status, caught.value.retry_after) == (429, "20")


# What is given


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"client_id": "id"}, "with one of id_token="),
        ({"id_token": "t"}, "client_id="),
        ({"client_id": "id", "id_token": "t", "audience": "a"}, "not both"),
        ({"client_id": "id", "id_token": "t", "auth_key": "k"}, "not both"),
    ],
)
def test_halves_of_a_login_are_refused_at_once(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tailscale.Device("a", **options)
    with pytest.raises(ValueError, match=sentence):
        tailscale.sync.Device("a", **options).open()


NAMES = ("TS_AUTHKEY", "TS_AUTH_KEY", "TS_CLIENT_SECRET", "TS_CLIENT_ID", "TS_ID_TOKEN", "TS_AUDIENCE")


@pytest.mark.parametrize(
    ("environment", "arguments", "expected"),
    [
        ({"TS_AUTHKEY": "1", "TS_AUTH_KEY": "2", "TS_CLIENT_SECRET": "3", "TS_CLIENT_ID": "4"}, {}, ("1", "")),
        ({"TS_AUTH_KEY": "2", "TS_CLIENT_SECRET": "3"}, {}, ("2", "")),
        ({"TS_CLIENT_SECRET": "3", "TS_CLIENT_ID": "4", "TS_AUDIENCE": "5"}, {}, ("3", "")),
        ({"TS_CLIENT_ID": "4", "TS_AUDIENCE": "5"}, {}, (None, "4")),
        ({"TS_AUTHKEY": "1", "TS_ID_TOKEN": "5"}, {"client_id": "mine"}, (None, "mine")),
        ({"TS_CLIENT_ID": "4", "TS_AUDIENCE": "5"}, {"auth_key": ""}, ("", "")),
        ({"TS_CLIENT_ID": "4", "TS_AUDIENCE": "5"}, {"auth_key": "mine"}, ("mine", "")),
    ],
)
def test_environment_is_read_in_upstreams_order(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    arguments: dict[str, str],
    expected: tuple[str | None, str],
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = {"auth_key": None, "client_id": None, "id_token": None, "audience": None} | arguments
    found = logins(**given)  # type: ignore[arg-type]
    assert (found.auth_key, found.client_id) == expected


# Secrets


async def test_secrets_tokens_and_made_keys_are_shown_nowhere(
    autojump_clock: MockClock, api: Api, tailnet: Tailnet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    spy = Spy(words={SECRET, TOKEN, SECRET.rpartition("-")[2]})
    a = await tailnet.device("a", auth_key=OAUTH, tags=TAGS)
    spy.see(a, a.status(), a.health, runtime_of(a).config, *vars(runtime_of(a).control).values())
    await a.login()
    maker = a_maker(tailnet, client_id="id", id_token="secret.id.token")
    spy.words |= {"secret.id.token", *api.keys}
    spy.see(maker)
    quoted, late = answer(403, f"{SECRET} is wrong".encode()), answer(403, f"{TOKEN} is wrong".encode())
    for answers in ([REFUSED], [PAGE], [MOVED], [quoted], [answer(200, {"access_token": TOKEN}), late]):
        api.answers = list(answers)
        await spy.failing(lambda: tailnet.device("b", auth_key=OAUTH, tags=TAGS, ready_timeout=5))
    for said in (b"secret.id.token is wrong", json.dumps({"error": "secret.id.token"}).encode()):
        api.answers = [answer(403, said)]
        await spy.failing(lambda: maker.take(TAGS))
    spy.words |= set(api.keys)
    spy.check(caplog.text)
