"""Small real checkpoints for demo and tests: `stable` (97 % correct), `twin` (equal), `wrong` (86 % correct).

`python -m serving.checkpoints [--out DIR]` trains the missing ones; `questions()` gives prompts with their
correct answers.
"""

from serving.checkpoints.cache import RECIPES, Checkpoint, default_dir, ensure, find
from serving.checkpoints.facts import Question, questions

__all__ = ["RECIPES", "Checkpoint", "Question", "default_dir", "ensure", "find", "questions"]
