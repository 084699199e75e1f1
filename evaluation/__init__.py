"""Evaluation: records in, verdicts out. Is the canary worse than stable, and is it proven to be no worse?

Path of a record: `records` (the contract) -> `settlement` (order, deadlines) -> `units` (draws) -> `pipeline`
(lanes) -> `metric_evidence` (columns) -> `sessions` and `stream` (session means, epochs) -> `betting`
(wealth; bettors in `rates`, `scores`, `latency`, `sample_ratio`, `missingness`) -> `verdict` -> `report`.
A live rollout enters by `evaluator`, a file by `offline/backtest`: from `pipeline` on the same code, with the
same bits.

Invariant: nothing here reads a clock, a network, a random number or an environment variable. Time and
evidence come in as values, verdicts leave as values, and the same input yields the same bits.
"""
