"""HTTP/1.1 from the server's side, as far as it needs no device: requests that may be believed, exchanges, limits."""
