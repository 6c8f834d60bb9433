"""Fixtures: one real service per test process, a workspace of its own per test, on the database that the round names."""

import os
from collections.abc import Iterator

import pytest

from tests.postgres import PostgresServer
from tests.service import ServiceThread, Workspace

DATABASE = os.environ.get("PERDURE_TEST_DATABASE", "sqlite")


@pytest.hookimpl(tryfirst=True)  # before those are deselected that a round leaves out
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """What starts no database is the same on every one."""
    for item in items:
        if "postgres" not in item.fixturenames:
            item.add_marker(pytest.mark.single_database)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer | None]:
    """The throwaway cluster of the Postgres round; None in the SQLite round."""
    if DATABASE == "sqlite":
        yield None
        return
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def database_url(postgres: PostgresServer | None) -> str | None:
    """A fresh database; None: the SQLite file in the data folder."""
    return None if postgres is None else postgres.create_database()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, database_url: str | None) -> Iterator[ServiceThread]:
    with ServiceThread(tmp_path_factory.mktemp("service"), database_url) as running:
        yield running


@pytest.fixture
def workspace(service: ServiceThread) -> Iterator[Workspace]:
    with service.workspace() as fresh:
        yield fresh
