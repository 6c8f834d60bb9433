"""The benches at a small size: rows are produced, and what is counted is right. The times are not looked at."""

from pathlib import Path

import pytest

from benchmarks import batch, growth, idempotency, idle, lists, results, search, stop, tree, viewers
from benchmarks.measure import Figure, Report, Size, kept
from benchmarks.model_server import ModelServer
from benchmarks.seeds import MODEL, many_runs, tables_of
from benchmarks.service import perdure

SMALL = Size(rounds=1, events=40, turns=2, requests=1, waiting=20, window_seconds=0.2, stops=1)

pytestmark = [pytest.mark.single_database, pytest.mark.timeout(240)]


async def test_the_benches_give_their_rows(tmp_path: Path) -> None:
    """They fail by themselves when a viewer misses an event, a run does not wait, what is stopped goes on, or both sides' lists
    differ in length."""
    async with ModelServer().running() as models, perdure(tmp_path, models.url) as service:
        session = await service.session(await service.agent("watched", MODEL))

        turn = await growth.turns(service, SMALL)
        _, latest = await viewers.watched(service, tmp_path, [session] * 50, SMALL)
        waiting = await idle.waiting_runs(service, SMALL)
        ended = await stop.stopped(service, models, SMALL)
        tree_ended = await tree.stopped(service, models, SMALL)
        carried_out = await batch.carried_out(service, 30, 0.1)
        (posted,) = await idempotency.repeated("here", [service], 50)
        async with tables_of(service) as database:
            seeded = await many_runs(database, 120)
            await search.many_sessions(database, 150)
        listed = await lists.compared("here", (service, seeded), (service, seeded), SMALL)
        searched = await search.compared("here", service, service, SMALL)

    assert targets(turn) == ["a turn, ms"]
    assert "| 40 events |" in turn.table()
    assert len(latest) == viewers.UPDATES
    assert len(targets(waiting)) == 3
    assert len(targets(ended)) == 12
    assert len(targets(tree_ended)) == 3
    assert [(figure.value, figure.verdict) for figure in carried_out[:2]] == [("30", "met")] * 2
    assert (posted.value, posted.target, posted.verdict) == ("1", "1", "met")
    assert len({figure.name for figure in listed if figure.verdict}) == 21
    assert len({figure.name for figure in searched if figure.verdict}) == 10


def test_a_missed_target_shows_and_counts() -> None:
    report = Report([Figure("a", "1", "1", kept(True)), Figure("b", "2", "1", kept(False))], "–", "how")

    assert not report.good
    assert "| b      | – | 2       | –     | 1      | **missed** |" in report.table()


def test_results_keep_the_other_benches(tmp_path: Path) -> None:
    file, order = tmp_path / "RESULTS.md", ["One", "Two"]
    results.keep({"Two": "## Two\n\nold\n"}, order, file)
    results.keep({"One": "## One\n\nfirst\n"}, order, file)
    results.keep({"Two": "## Two\n\nnew\n"}, order, file)
    assert file.read_text() == f"{results.HEADER}\n## One\n\nfirst\n\n## Two\n\nnew\n"


def targets(report: Report) -> list[str]:
    return [figure.name for figure in report.figures if figure.verdict]
