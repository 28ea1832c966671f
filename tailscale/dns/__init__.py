"""Names: the tailnet's own first, then its resolvers, over the tailnet. Private."""
