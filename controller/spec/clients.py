"""Clients of a service, in its spec: API keys, audiences, categories, their weights and a burst cap."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from serving.files.client_rules import ClientFields


class ClientsSpec(ClientFields):
    """As in a table file; `up` with changed clients changes them while the service runs."""

    cookie: bool = Field(
        default=False, strict=True, description="affinity tokens as cookies too, for browsers"
    )

    @model_validator(mode="after")
    def _check_trust(self) -> Self:
        if self.trust is not None:
            raise ValueError(
                "trust is for `canaryctl router`: behind the ingress of a cluster every request has its "
                "address, so that no header could be trusted; give the clients keys"
            )
        return self
