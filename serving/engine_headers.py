"""Headers between routers, and the fronts of our engines, beside `SECRET_HEADER`; names in lower case."""

REVISION_HEADER = b"x-canaryctl-revision"  # EPOCH.REVISION of the table, for the fence
REFUSED_HEADER = b"x-canaryctl-refused"  # why the front refuses a request, which its engine never saw
TOKENS_HEADER = b"x-canaryctl-tokens"  # digest of the vocabulary and token limit (`fleet/token_notes.py`)
NO_TOKENS = "none"  # in place of the digest: this answer cannot be continued
VIA_HEADER = b"x-canaryctl-via"  # through which routers a request has come: HOP,HOP; to external endpoints
