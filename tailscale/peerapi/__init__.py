"""The little HTTP server that every node has for its peers. Private; `Device.answer_peers` adds paths to it."""
