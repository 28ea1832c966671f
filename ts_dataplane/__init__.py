"""Everything that decides where: the engine, routes, the packet filter, disco, STUN and path choice."""
