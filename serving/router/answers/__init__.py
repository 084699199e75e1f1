"""Answers of engines, scanned in transit: events, content, finish, usage, and what they say. Pure."""
