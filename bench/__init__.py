"""What pytailscale costs, always as a ratio to something measured in the same run. `python -m bench` runs all of it."""
