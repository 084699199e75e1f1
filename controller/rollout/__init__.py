"""The rollout machine and its vocabulary: pure, every transition in machine.py."""
