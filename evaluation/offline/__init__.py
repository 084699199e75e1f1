"""Backtests of recorded rollouts: columns, duplicates, decision, trace."""
