"""Numbers in, verdicts out: is the canary worse than stable, and is it proven to be no worse?

Invariant: nothing here reads a clock, a network, a random number or an environment variable. Time and
evidence come in as values, verdicts leave as values, and the same input gives the same output to the last
bit.
"""
