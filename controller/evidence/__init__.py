"""From the records log to the evaluator: one reader, its subscribers, alarms, load and snapshots."""
