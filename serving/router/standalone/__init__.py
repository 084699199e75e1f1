"""The standalone router: its table file, its log, its command."""
