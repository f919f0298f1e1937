from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stn_serve.journal import Change, Journal

names = st.sampled_from("abc")
changes = st.one_of(
    st.tuples(st.sampled_from(["load", "unload"]), st.tuples(names)),
    st.tuples(st.just("register"), st.tuples(names, st.just("key"), st.just(0), st.integers(1, 3))),
    st.tuples(st.just("unregister"), st.tuples(st.sampled_from(["", "a", "b", "c"]))),
    st.tuples(st.just("log"), st.tuples(st.dictionaries(st.sampled_from(["log_info", "log_error"]), st.booleans()))),
)


def play(steps: list[Change]) -> tuple[dict[str, str], dict[str, object], dict[str, object]]:
    """What a worker is after these changes: models, regions and log settings."""
    models: dict[str, str] = {}
    regions: dict[str, object] = {}
    logs: dict[str, object] = {}
    for operation, arguments in steps:
        if operation in ("load", "unload"):
            models[arguments[0]] = operation
        elif operation == "register":
            regions[arguments[0]] = arguments
        elif operation == "log":
            logs |= arguments[0]
        elif arguments[0]:
            regions.pop(arguments[0], None)
        else:
            regions.clear()
    return models, regions, logs


@given(st.lists(changes, max_size=12))
def test_who_follows_the_journal_arrives_where_the_others_are(steps: list[Change]) -> None:
    journal = Journal()
    for operation, arguments in steps:
        journal.note(operation, arguments)
    assert play(list(journal)) == play(steps)
    assert len(list(journal)) <= 3 + 3 + 1
