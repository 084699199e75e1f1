"""The rollout state machine and its vocabulary. Pure: no clock, no network, no database."""
