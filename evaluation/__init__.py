"""Numbers in, verdicts out: is the canary worse than stable, and is it proven to be no worse?

A record's way: `records` (the contract) -> `settlement` (order, deadlines) -> `units` (which coin) ->
`pipeline` (lanes) -> `evidence` (a metric's columns) -> `sessions` and `stream` (first requests, session
means, epochs) -> `betting` with the bettors of `rates`, `scores`, `latency`, `served_share` and `presence`
-> `verdict`. A live rollout enters by `evaluator`, a file by `backtest`: the same code from `pipeline` on,
and the same bits.

Invariant: nothing here reads a clock, a network, a random number or an environment variable. Time and
evidence come in as values, verdicts leave as values, and the same input gives the same output to the last
bit.
"""
