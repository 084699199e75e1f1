"""Small real checkpoints for demo and tests: `stable` (97 % right), `twin` (as good), `wrong` (86 % right).

`python -m serving.checkpoints [--out DIR]` trains what is missing; `questions()` gives the prompts
with their right answers.
"""

from serving.checkpoints.cache import RECIPES, Checkpoint, default_dir, ensure, find
from serving.checkpoints.facts import Question, questions

__all__ = ["RECIPES", "Checkpoint", "Question", "default_dir", "ensure", "find", "questions"]
