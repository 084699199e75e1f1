"""Which of several forms of a request an endpoint takes. Pure.

Chat completions are not one API: some endpoints refuse `logprobs`, `max_tokens` or `temperature`, each by a
status of its own choice. Whoever asks has a ladder of forms, the fullest first, and climbs down while one is
refused, until the endpoint has answered one; from then on that form alone is asked.
"""

from __future__ import annotations

from dataclasses import dataclass

# Questions that may climb while none was answered, and then each so many-th: a first question may be refused
# for its own sake, and an endpoint that refuses everything must not cost several requests for ever.
CLIMBS = 32


@dataclass(slots=True)
class RequestForms:
    """The forms of one endpoint, 0 the fullest, and the one that it answers."""

    count: int
    known: int | None = None  # None: it has answered none
    _questions: int = 0

    def to_try(self) -> range:
        """The forms of the next question, in order; the next one is for where one is refused."""
        if self.known is not None:
            return range(self.known, self.known + 1)
        self._questions += 1
        climbs = self._questions <= CLIMBS or self._questions % CLIMBS == 0
        return range(self.count if climbs else 1)

    def answered(self, form: int) -> None:
        """It answered this form. Of questions side by side the fullest form counts."""
        self.known = form if self.known is None else min(self.known, form)
