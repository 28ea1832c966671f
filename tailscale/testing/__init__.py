"""An in-process tailnet for tests: control server, relay and devices, with faults on demand."""
