"""The cellar: keys, boxes, timers, address peeks and the one parse error. Nothing here changes over time."""
