"""Ways out: SOCKS and HTTP as codecs, which exit to choose, when not to trust it. Knows no socket and no clock."""
