"""Every route: none can wait for a thread that another kind of call holds."""

from __future__ import annotations

import inspect

import pytest
from fastapi.routing import APIRoute

from controller.ab.service import AbTests
from controller.api.ab import add_ab_routes
from controller.api.app import make_app
from controller.api.bearer_auth import TokenLookups, requires
from controller.api.slow_calls import SlowCalls
from controller.auth import Role
from tests.fakes.controller import FakeController

ROUTES = 17  # of one path two: HEAD and GET


@pytest.fixture
def routes(controller: FakeController) -> list[APIRoute]:
    app = make_app(
        controller.store, controller.commands, controller.runner, base_url=lambda name: name, version="test"
    )
    lookups = TokenLookups(controller.store)
    viewer, operator = requires(lookups, Role.VIEWER), requires(lookups, Role.OPERATOR)
    unused: AbTests = None  # type: ignore[assignment]
    add_ab_routes(app, unused, viewer=viewer, operator=operator, slow=SlowCalls())
    return [route for route in app.routes if isinstance(route, APIRoute)]


def test_every_route_is_asynchronous(routes: list[APIRoute]) -> None:
    """A synchronous one runs in threads that all of them share: 45 polls of one made a rollback wait 41 s."""
    synchronous = [route.path for route in routes if not inspect.iscoroutinefunction(route.endpoint)]

    assert (synchronous, len(routes)) == ([], ROUTES)


def test_no_dependency_of_a_route_is_synchronous(routes: list[APIRoute]) -> None:
    """The token was looked up in the shared threads, so a database that stood still held up all routes."""
    synchronous = [
        (route.path, one.call)
        for route in routes
        for one in route.dependant.dependencies
        if not inspect.iscoroutinefunction(one.call)
    ]

    assert synchronous == []


def test_no_route_reads_a_body_before_the_token(routes: list[APIRoute]) -> None:
    """FastAPI reads a body that a route declares before any dependency is asked."""
    assert [route.path for route in routes if route.body_field is not None] == []
