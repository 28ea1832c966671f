"""One list of options: what `Config` holds is what a Device takes, says, changes, and offers on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re

import tailscale
from tailscale._config import Config, Preferences
from tailscale.cli.arguments import _common_options
from tailscale.threads.face import DeviceOptions

RIG_ONLY = {"relay_over_http", "never_direct", "force_login"}  # switches by environment alone
DERIVED = {"wants_the_name"}  # how the name came about
KEPT_BESIDE = {"state"}  # a Store is held by the Device
NOT_FOR_COMMANDS = {
    *("accept_routes", "exit_node", "advertise_routes", "shields_up"),  # of services, which are programs
    *("advertise_exit_node", "forward", "on_flow"),
    "hard_nats",  # of the daemon's configuration
    *("on_login_url", "login_timeout", "ready_timeout", "udp_port", "tls"),
    "certificates",  # the daemon has control's
    "peerapi",  # a daemon and a command have one, as every node has
    "overlay",  # `pytailscale tun`
    "handle_sigterm",  # they hear signals themselves
}


def fields_of(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


WISHES = fields_of(Preferences) - DERIVED
OPTIONS = (fields_of(Config) - {"preferences"} - RIG_ONLY) | WISHES | KEPT_BESIDE


def test_device_takes_what_config_holds() -> None:
    assert set(inspect.signature(tailscale.Device).parameters) == OPTIONS
    assert set(DeviceOptions.__annotations__) == OPTIONS - {"hostname"}


def test_device_says_what_each_option_is() -> None:
    lines = re.findall(r"^- (`.*?): ", inspect.getdoc(tailscale.Device) or "", re.MULTILINE)
    assert {name for line in lines for name in re.findall(r"`(\w+)`", line)} == OPTIONS


def test_what_may_change_is_what_preferences_hold() -> None:
    of_paths = {"uplinks", "paths"}  # which `device.uplinks` and `device.paths` tell of
    assert set(inspect.signature(tailscale.Device.set).parameters) - {"self"} == WISHES | of_paths


def test_commands_offer_the_options_that_are_for_people() -> None:
    offered = {action.dest for action in _common_options()._actions if not isinstance(action, argparse._HelpAction)}
    assert offered & OPTIONS == OPTIONS - NOT_FOR_COMMANDS
