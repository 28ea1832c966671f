"""Files between a disk and a connection, whatever protocol carries them. Private: `mesh` and `taildrop` stand on it."""
