"""One request on its way: attempts, held answers, takeover, relay, record. No socket of its own."""
