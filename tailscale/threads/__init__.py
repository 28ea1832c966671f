"""One trio loop in a thread of its own, and what the asyncio and sync faces share. Private."""
