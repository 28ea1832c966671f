"""What can stand between a program and its peer, by code, and what to set: one table for errors, `explain` and doctor.

Owns the codes and the remedies. The sentences are made where the facts are: `dial/failures.py`, health, the checks of
the doctor. Refuses to know who asks.
"""

from __future__ import annotations

REMEDIES = {
    # Ourselves
    "state-in-use": "stop the other process, or give this device its own state= (--state, or --ephemeral)",
    "control-unreachable": "check the network here, and control_url= (or TS_CONTROL_URL); it is retried",
    "login-needed": "open the login page, or pass auth_key= (or set TS_AUTHKEY)",
    "logged-out": "await device.login() to come back (pytailscale login)",
    "approval-needed": "approve this device on the control server",
    "key-expired": "await device.login() (pytailscale login), or extend this device's key on the control server",
    "clock-wrong": "set this machine's clock (timedatectl set-ntp true)",
    "relay-home-unreachable": "let TCP 443 out to the tailnet's relays; tls= (or SSL_CERT_FILE) must know their CA",
    "udp-blocked": "let UDP out to port 3478 and to peers; relays carry everything until then",
    "no-socket": "leave local ports free; both ends need an address of the same family",
    "key-expires-soon": "await device.login() (pytailscale login), or extend this device's key on the control server",
    # The name and the way
    "name-not-found": "check the name: `pytailscale status` lists those that this device may see",
    "name-unanswered": "try again; the tailnet's DNS servers must be reachable from here",
    "no-route": "`pytailscale status` lists the peers this device may see, and their addresses",
    "route-not-approved": "approve the route on the control server",
    "routes-not-accepted": "accept_routes=True, or await device.set(accept_routes=True)",
    "exit-node-missing": "await device.set(exit_node=...) (None for none); its routes must be approved",
    "no-exit": "name another exit node with via=, or let that one offer both default routes and have them approved",
    # The peer
    "peer-offline": "start that machine, or tailscale on it",
    "peer-not-signed": "sign its node key on a machine that the lock trusts: tailscale lock sign nodekey:...",
    "peer-key-expired": "log in again on that machine, or extend its key on the control server",
    "peer-silent": "see whether tailscale runs on that machine, and whether it reaches a relay",
    "black-hole": "raise the MTU of the network between, or let ICMP 'packet too big' through",
    # The port
    "policy-here": "admit the peer in the tailnet policy, or shields_up=False",
    "policy-there": "admit this device to that port in the tailnet policy",
    "port-closed": "start the service there, and let it listen on the tailnet address, not on 127.0.0.1 alone",
    "port-silent": "look at the tailnet policy, and at that machine's own firewall",
    "port-unreachable": "look at the network behind the router: it knows no way to that address",
    "port-resets": "look at the log of the service on that port",
    "port-unanswered": "a UDP service need not answer an empty datagram: ask it in its own protocol",
}

WAITS_FOR_LOGIN = "this device waits for somebody to log it in"

REACHABLE = "reachable"
"""The code of an explanation that found nothing in the way."""


# What errors and remedies call the arguments of a Device, as people type them.
OPTIONS = (
    ("await device.login() to come back (pytailscale login)", "`pytailscale login` comes back"),
    ("await device.login() (pytailscale login)", "`pytailscale login`"),
    ("await device.login()", "`pytailscale login`"),
    ("device.login()", "`pytailscale login`"),
    ("state= (--state, or --ephemeral)", "--state, or --ephemeral"),
    ("auth_key=", "--auth-key"),
    ("client_id=", "--client-id"),
    ("id_token=", "--id-token"),
    ("audience=", "--audience"),
    ('tags=["tag:ci"]', "--advertise-tags tag:ci"),
    ("control_url=", "--control-url"),
    ("control_url must", "--control-url must"),
    ("ready_timeout=", "--timeout"),
    ("login_timeout=", "--timeout"),
    ("state=", "--state"),
)


def in_option_words(sentence: str) -> str:
    """A sentence for Python programs, said to those who type commands."""
    for python, typed in OPTIONS:
        sentence = sentence.replace(python, typed)
    return sentence


def remedy_for(code: str) -> str:
    """What to set; "" for what needs nothing."""
    return REMEDIES.get(code, "")


UPSTREAM_CODES = {
    "control-unreachable": "not-in-map-poll",
    "relay-home-unreachable": "no-derp-connection",
    "login-needed": "login-state",
    "key-expired": "login-state",
    "control-refused": "login-state",
    "state-not-saved": "state-store-health",
}
"""Warnings of ours that mean what one of upstream's means."""


def upstream_code(code: str) -> str:
    """The name under which upstream's programs know a warning; ours where they have none."""
    if code.startswith("control-says-"):
        return f"control-health.{code.removeprefix('control-says-')}"
    if code.startswith("relay-") and code.endswith("-unwell"):
        return "derp-region-error"
    return UPSTREAM_CODES.get(code, code)
