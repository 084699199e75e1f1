"""API keys, audiences, categories and forced arms."""

from __future__ import annotations

import pytest

from serving.access import Access, ClientKey, TrustedHeaders, digest_of
from serving.messages import CANARY, STABLE
from serving.router.assignment.clients import Client, Clients
from serving.router.exchange.exchange import Exchange
from serving.router.types import Refusal, Request
from serving.targets import Target
from tests.fakes.routed import Routed

KEYS = {
    digest_of("sk-staff"): ClientKey("staff", audiences=("staff",)),
    digest_of("sk-ops"): ClientKey("ops", may_force=True),
    digest_of("sk-code"): ClientKey("ide", categories=("code",)),
    digest_of("sk-both"): ClientKey("both", audiences=("staff",), categories=("code",)),
}
ACCESS = Access(KEYS, audience_bp={"staff": 10_000, "beta": 2500}, category_bp={"code": 3000})
TRUST = TrustedHeaders("x-audience", "x-category", ("10.0.0.0/8", "fd00::/8"))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("headers", "w"),
    [
        ({}, 0.1),
        (bearer("sk-code"), 0.3),
        (bearer("sk-staff"), 1.0),
        (bearer("sk-both"), 1.0),
        (bearer("sk-unknown"), 0.1),
        ({"x-api-key": "sk-code"}, 0.3),
        ({"api-key": "sk-code"}, 0.3),
        ({"authorization": "Basic sk-code"}, 0.1),
        ({"authorization": "Bearer "}, 0.1),
    ],
)
def test_the_weight_is_the_largest_of_the_general_one_and_the_clients(
    headers: dict[str, str], w: float
) -> None:
    record = Routed().use(weight_bp=1000, access=ACCESS).served(headers=headers).record

    assert (record.w, record.assigned_by) == (w, "request")


@pytest.mark.slow
def test_a_share_of_an_audience_matches_the_weight_that_is_logged() -> None:
    routed = Routed().use(weight_bp=1000, access=ACCESS)
    records = [routed.served({"user": f"u-{n}"}, headers=bearer("sk-code")).record for n in range(600)]

    assert {record.w for record in records} == {0.3}
    assert 140 < sum(record.arm for record in records) < 220


def test_a_raised_general_weight_never_lowers_an_audiences() -> None:
    routed = Routed().use(weight_bp=5000, access=ACCESS)

    assert routed.served(headers=bearer("sk-code")).record.w == 0.5


@pytest.mark.parametrize(
    ("peer", "headers", "w"),
    [
        ("10.1.2.3", {"x-audience": "beta"}, 0.25),
        ("::ffff:10.1.2.3", {"x-audience": "beta"}, 0.25),
        ("fd00::1", {"x-audience": "other, beta"}, 0.25),
        ("10.1.2.3", {"x-category": "code", "x-audience": "beta"}, 0.3),
        ("10.1.2.3", {"x-audience": "unknown"}, 0.1),
        ("11.1.2.3", {"x-audience": "staff"}, 0.1),
        ("", {"x-audience": "staff"}, 0.1),
    ],
)
def test_a_header_counts_from_trusted_networks_alone(peer: str, headers: dict[str, str], w: float) -> None:
    access = Access(KEYS, trusted=TRUST, audience_bp=ACCESS.audience_bp, category_bp=ACCESS.category_bp)
    served = Routed().use(weight_bp=1000, access=access).served(headers=headers, peer=peer)

    assert served.record.w == w
    assert not {name for name, _ in served.attempt.headers} & {b"x-audience", b"x-category"}


@pytest.mark.parametrize(("force", "arm"), [("stable", STABLE), ("canary", CANARY), (" Canary ", CANARY)])
@pytest.mark.parametrize("weight_bp", [1, 9999])
def test_a_key_with_the_right_forces_an_arm_outside_the_draw(force: str, arm: int, weight_bp: int) -> None:
    routed = Routed().use(weight_bp=weight_bp, access=ACCESS)
    served = routed.served(headers={**bearer("sk-ops"), "x-canaryctl-force": force})

    assert (served.record.arm, served.record.assigned_by) == (arm, "forced")
    assert served.attempt.arm == arm
    assert b"x-canaryctl-force" not in dict(served.attempt.headers)


@pytest.mark.parametrize("key", ["sk-staff", "sk-unknown"])
def test_without_the_right_the_force_header_is_stripped(key: str) -> None:
    access = Access(KEYS)
    routed = Routed().use(weight_bp=1, access=access)
    served = routed.served(headers={**bearer(key), "x-canaryctl-force": "canary"})

    assert (served.record.arm, served.record.assigned_by) == (STABLE, "request")
    assert b"x-canaryctl-force" not in dict(served.attempt.headers)


def test_a_forced_arm_that_is_none_is_refused_in_one_line() -> None:
    routed = Routed().use(access=ACCESS)
    refusal = routed.ask(headers={**bearer("sk-ops"), "x-canaryctl-force": "red\nblue"})

    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (400, "bad_force")
    assert "send stable or canary" in refusal.message


def test_without_a_canary_or_a_lease_a_forced_request_goes_to_stable() -> None:
    headers = {**bearer("sk-ops"), "x-canaryctl-force": "canary"}
    withdrawn = Routed().use(access=ACCESS, canary=None, weight_bp=0).served(headers=headers)
    routed = Routed().use(access=ACCESS)
    routed.core._lease_until_s = 0.0
    fenced = routed.ask(headers=headers)

    assert withdrawn.attempt.arm == STABLE
    assert isinstance(fenced, Exchange)
    assert fenced.next_attempt().arm == STABLE  # type: ignore[union-attr]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_a_service_that_requires_keys_refuses_all_others(path: str) -> None:
    routed = Routed().use(access=Access(KEYS, keys_required=True))
    none, wrong = routed.ask(path=path), routed.ask(path=path, headers=bearer("sk-x"))

    for refusal in (none, wrong):
        assert isinstance(refusal, Refusal)
        assert (refusal.status, refusal.code) == (401, "invalid_api_key")
        assert "sk-x" not in refusal.message
    assert isinstance(routed.ask(path=path, headers=bearer("sk-code")), Exchange)


def test_a_table_shows_no_key() -> None:
    assert "sk-staff" not in repr(ACCESS)


@pytest.mark.parametrize(
    ("lines", "audiences"),
    [
        (["public"], ("public",)),
        (["staff", "public"], ("public",)),  # the client's own, and what its proxy appends
        (["public", "staff, beta"], ("staff", "beta")),
        (["staff", ""], ()),
    ],
)
def test_of_several_lines_the_one_that_the_proxy_appends_counts(
    lines: list[str], audiences: tuple[str, ...]
) -> None:
    headers = [(b"x-audience", one.encode()) for one in lines]
    request = Request("POST", Target("/v1/completions"), headers, b"{}", "10.1.2.3")
    found = Clients(Access(trusted=TRUST)).identify(request)

    assert isinstance(found, Client)
    assert found.audiences == audiences


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
@pytest.mark.parametrize(
    ("access", "key"),
    [
        (Access(KEYS, keys_required=True), "sk-staff"),
        (ACCESS, "sk-code"),
        (ACCESS, ""),
        (Access({digest_of("sk-ops"): ClientKey("ops")}), "sk-ops"),
    ],
)
def test_where_clients_have_keys_nobody_lists_the_files_and_batches_of_all(
    access: Access, key: str, path: str
) -> None:
    routed = Routed().use(access=access)
    headers = bearer(key) if key else {}
    listed = [routed.ask(path=path, method=method, headers=headers) for method in ("GET", "HEAD")]

    assert [(one.status, one.code) for one in listed if isinstance(one, Refusal)] == [
        (403, "list_of_all_clients")
    ] * 2
    for method, of_own in (("POST", path), ("GET", f"{path}/id-1"), ("DELETE", "/v1/files/id-1")):
        assert isinstance(routed.ask(path=of_own, method=method, headers=headers), Exchange)


@pytest.mark.parametrize(
    "access",
    [None, Access(trusted=TRUST), Access({digest_of("sk-1"): ClientKey("team")}, keys_required=True)],
)
def test_clients_who_are_all_alike_may_list_files_and_batches(access: Access | None) -> None:
    routed = Routed().use(access=access)
    found = [
        routed.ask(path=one, method="GET", headers=bearer("sk-1")) for one in ("/v1/files", "/v1/batches")
    ]

    assert all(isinstance(one, Exchange) for one in found)
