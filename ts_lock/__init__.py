"""Tailnet lock: which node keys the tailnet's own signers vouch for, whatever control says."""
