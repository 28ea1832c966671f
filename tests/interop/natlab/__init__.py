"""A NAT lab from network namespaces: an internet, routers of several kinds, and nodes behind them.

Needs root, iproute2 and nftables; touches nothing outside namespaces of its own. The process that makes a
lab moves into its internet, so control server and relays started there are on that internet.
"""

from tests.interop.natlab.kinds import HOSTS, NODE_PORT, hosts_for
from tests.interop.natlab.namespaces import inside, why_not
from tests.interop.natlab.pairs import PAIRS, expected, is_opened_by_ours, measure, our_patience
from tests.interop.natlab.sites import Lab, Site, lab

__all__ = [
    "HOSTS", "NODE_PORT", "PAIRS", "Lab", "Site", "expected", "hosts_for", "inside", "is_opened_by_ours", "lab",
    "measure", "our_patience", "why_not",
]  # fmt: skip
