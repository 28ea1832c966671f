"""`config.toml`: every key is taken, every fault is told by its line."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailscale.cli.config import read_file
from tailscale.daemon.parts import KINDS
from tailscale.daemon.settings import SECTIONS, BadSettings, read_settings

WHOLE = """\
[device]
hostname = "desk"
control_url = "https://headscale.example.com"
auth_key_file = "~/key"
client_id = "k123?ephemeral=false"
audience = "api.tailscale.com/k123"
id_token_file = "/run/token"
tags = ["tag:ci"]
accept_routes = false
exit_node = "exit-nl"
advertise_routes = ["192.168.7.0/24"]
advertise_exit_node = false
shields_up = true
udp_port = 41641
uplinks = ["wlan0", "wwan0"]
paths = {nas = "redundant:2", "*" = "backup:wlan0,wwan0"}
hard_nats = false

[log]
level = "debug"
size = 1000000
files = 2

[tun]
name = "ts0"
mtu = 1280
split = true
exclude = ["10.1.0.0/16"]
dns = "auto"

[[forward]]
listen = "127.0.0.1:5433"
to = "db:5432"

[[forward]]
listen = "unix:/run/user/1000/db.sock"
to = "[fd7a::1]:5432"

[[expose]]
port = 80
proxy_protocol = 1
to = "127.0.0.1:3000"

[[serve]]
http = 80
path = "/docs"
to = "/srv/docs"

[[serve]]
https = 443
to = "3000"

[[serve]]
tcp = 5432
to = "localhost:5432"
proxy_protocol = 2

[[serve]]
service = "svc:db"
tls_terminated_tcp = 5433
to = "localhost:5432"

[[certificate]]
name = "web.tail1234.ts.net"
cert_file = "/etc/web.crt"
key_file = "/etc/web.key"

[[proxy]]
listen = "127.0.0.1:1080"
exit = "NL"
users = {alice = "secret"}

[[mesh]]
app = "notes"

[taildrop]
accept = true
folder = "~/Downloads"
largest = 1000000
quota = 10000000
exists = "replace"

[ssh]
port = 2222

[metrics]
listen = "127.0.0.1:9100"
peers = true

[ingress]
listen = "0.0.0.0:443"
to = "web"
names = {"web.example.com" = "web"}
port = 443
connections = 1000
per_name = 500
per_source = 50
proxy_protocol = false
"""


def faults(text: str) -> list[tuple[int, str]]:
    with pytest.raises(BadSettings) as caught:
        read_settings(text, "c.toml")
    return [(fault.line, fault.sentence) for fault in caught.value.faults]


def test_every_section_and_key_is_taken() -> None:
    found = read_settings(WHOLE, "c.toml")
    used = {(name, key) for name, table in (("device", found.device), ("log", found.log)) for key in table}
    used |= {(kind, key) for kind, keys in found.parts for key in keys}
    assert used >= {(name, key) for name in SECTIONS for key in SECTIONS[name].keys}
    kinds = [kind for kind, _ in found.parts if kind not in ("serve", "certificate")]
    assert kinds == ["tun", "forward", "forward", "expose", "proxy", "mesh", "taildrop", "ssh", "metrics", "ingress"]


def test_every_kind_of_part_has_a_section_and_can_be_run() -> None:
    assert KINDS.keys() | {"mesh", "serve", "taildrop"} == SECTIONS.keys() - {"device", "log"}


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("[device]\n\nhostnme = 'x'\n", 3, "[device] has no hostnme; did you mean hostname?"),
        ("[devices]\n", 1, "there is no [devices]; did you mean device?"),
        ("x = 1\n", 1, "there is no [x] (known: "),
        ("[device]\nshields_up = 'yes'\n", 2, "shields_up must be true or false"),
        ("[device]\nudp_port = 70000\n", 2, "udp_port must be a whole number from 0 to 65535"),
        ("[device]\nudp_port = true\n", 2, "udp_port must be a whole number"),
        ("[device]\ntags = 'tag:x'\n", 2, "tags must be a list of texts"),
        ("[device]\nexit_node = 'nl'\nadvertise_exit_node = true\n", 3, "uses an exit node or is one"),
        ("[tun]\nname = 'a/b'\n", 2, "name must be the name of an interface, such as"),
        ("[tun]\ndns = 'yes'\n", 2, 'dns must be true, false or "auto"'),
        ("[device]\nadvertise_routes = ['x']\n", 2, "advertise_routes must be a list of prefixes such as"),
        ("[log]\nlevel = 'wanring'\n", 2, "level must be one of debug, info, warning, error; did you mean warning?"),
        ("[forward]\nlisten = '127.0.0.1:1'\nto = 'db:1'\n", 1, "forward is a section: [[forward]]"),
        ("[ssh]\nport = 'ssh'\n", 2, "port must be a whole number from 1 to 65535"),
        ("device = 3\n", 1, "device is a section: [device]"),
        ("[[forward]]\nlisten = ':5433'\nto = 'db:5432'\n", 2, 'listen must be "host:port or unix:/path"'),
        ("[[expose]]\nport = 80\n", 1, "[[expose]] needs to"),
        (
            "[[expose]]\nport=1\nto='a:1'\n[[expose]]\n# x\nprt=1\nto='a:1'\n",
            6,
            "[[expose]] has no prt; did you mean port?",
        ),
        ("[device\n", 1, "Expected ']' at the end of a table declaration at column 8"),
        ("a = \n", 1, "Invalid value at column 5"),
        ("a = '''\n\n", 3, "at the end"),
    ],
)
def test_faults_are_told_by_line(text: str, line: int, sentence: str) -> None:
    found = faults(text)
    assert any(at == line and sentence in told for at, told in found), found


def test_all_faults_are_told_at_once() -> None:
    assert [line for line, _ in faults("[device]\na=1\nb=2\n[log]\nc=3\n")] == [2, 3, 5]


def test_a_file_that_is_no_text_says_where(tmp_path: Any) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(b"[device]\nhostname = '\xff'\n")
    with pytest.raises(BadSettings, match=r"c\.toml:2: this is not UTF-8"):
        read_file(path, must_exist=True)
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(BadSettings, match="more than"):
        read_file(path, must_exist=True)
    assert read_file(tmp_path / "none.toml", must_exist=False).parts == ()
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none.toml", must_exist=True)


@settings(max_examples=50)
@given(st.text(st.sampled_from("[]\n=\"'#.devicforward listen: 1"), max_size=80) | st.text(max_size=40))
def test_any_text_is_settings_or_faults(text: str) -> None:
    try:
        found = read_settings(text, "c.toml")
    except BadSettings as error:
        lines = [fault.line for fault in error.faults]
    else:
        lines = [1]
        assert tomllib.loads(text).keys() <= SECTIONS.keys()
        assert found.path == "c.toml"
    assert min(lines) >= 1
