"""The database's URL, parsed in one place: it may hold a password, which no error shows."""

from __future__ import annotations

import re

import sqlalchemy as sa

from controller.errors import BadInput

#: libpq's way to name several hosts, each with a port of its own, of which SQLAlchemy has another.
_HOSTS = re.compile(
    r"(?P<scheme>postgresql[^:]*://)(?P<user>[^/@]*@)?"
    r"(?P<hosts>[^/@?,]+(?:,[^/@?,]+)+)(?P<name>/[^?]*)?(?:\?(?P<query>.*))?"
)
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")

_USER = re.compile(r"(?P<user>[^:/]*)(?P<password>:[^@]*)?@")  # as SQLAlchemy reads it

_PORT_AND_OPTIONS = re.compile(r":[0-9]{1,5}/[^?]*\?")  # no password, but what follows a host


def parsed_url(url: str) -> sa.URL:
    """The URL's parts. `HOST:PORT,HOST:PORT` names several hosts, as for psql. Raises BadInput."""
    try:
        _require_one_reading(url)
        return sa.make_url(_with_hosts_as_options(url))
    except (sa.exc.ArgumentError, ValueError):
        # Nor as the error's cause: the rest of a password with @ and : is taken for the port, and quoted.
        raise BadInput(
            "the database URL (CANARYCTL_DATABASE_URL, else database.url in the state folder) cannot be "
            "parsed; use sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME, "
            "with @ : / ? # % in a password as %40 %3A %2F %3F %23 %25"
        ) from None


def _require_one_reading(url: str) -> None:
    """Raises ValueError where a part of the password may be taken for something else, which is shown and
    asked of name servers: SQLAlchemy ends a password at its first @, and a user without one at the last."""
    scheme, _, rest = url.partition("://")
    if scheme.startswith("sqlite"):
        return  # a path may hold anything, and there is no password
    found = _USER.match(rest)
    after = rest[found.end() :] if found is not None else rest
    if found is None or found["password"] is None:
        after = after.partition("?")[0]
    elif _PORT_AND_OPTIONS.match(found["password"]):
        raise ValueError("an @ in the options, of which the rest would be the host")
    if "@" in after or (found is not None and "?" in found["user"]):
        raise ValueError("an @ that is not encoded")


def _with_hosts_as_options(url: str) -> str:
    """The URL with several hosts as SQLAlchemy wants them; else as it is. Raises ValueError."""
    found = _HOSTS.fullmatch(url)
    if found is None:
        return url
    places = [_HOST.fullmatch(place) for place in found["hosts"].split(",")]
    known = [place for place in places if place is not None]
    if len(known) < len(places):
        raise ValueError("no host and port")
    hosts = ",".join(place["v6"] or place["host"] for place in known)
    ports = ",".join(place["port"] or "5432" for place in known)
    query = f"host={hosts}&port={ports}" + (f"&{found['query']}" if found["query"] else "")
    return f"{found['scheme']}{found['user'] or ''}{found['name'] or '/'}?{query}"
