"""The shell: actors in one nursery, a bus of facts between them, and the loop that carries packets."""
