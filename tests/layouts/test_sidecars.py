"""Item lists and interactions: rewritten in their own bytes, and read back as a CSV reader reads them."""

from __future__ import annotations

import csv
import io
from ast import literal_eval
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recerase.errors import TableError
from recerase.layouts.sidecars import interactions, listed_items, rewritten_list, sid_columns

OLD = {"0": "<a_1><b_2>", "1": "<a_1><b_2>", "2": "<a_3><b_4>", "30": "<a_0><b_0>"}
NEW = {"1": "<a_9><b_9>", "30": "<a_1><b_2>"}
HERE = Path("file")
HEAD = ["user_id", "history_item_title", "item_title", "history_item_id", "item_id", "history_item_sid", "item_sid"]
titles = st.text(st.sampled_from(list("ab,'\"\n\t \\é<_>1")), max_size=12) | st.just("<a_1><b_2>")
rows = st.lists(
    st.tuples(st.lists(st.sampled_from([*OLD, "77"]), max_size=4), st.sampled_from(list(OLD)), titles), max_size=4
)


def written(records: list[tuple[list[str], str, str]], end: str, numbers: bool) -> str:
    """As pandas writes it; item 77 has no SID, and so no place among the SIDs."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator=end)
    writer.writerow(HEAD)
    for history, item, title in records:
        ids = [int(i) for i in history] if numbers else history
        writer.writerow(["A1", [title], title, ids, item, [OLD[i] for i in history if i in OLD], OLD[item]])
    return buffer.getvalue()


@given(rows, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_the_owner_of_a_sid_decides_and_all_else_stays(
    records: list[tuple[list[str], str, str]], end: str, numbers: bool
) -> None:
    text = written(records, end, numbers)
    same, longest = interactions(text, HERE, OLD)
    assert same == text
    assert longest == max([sum(i in OLD for i in history) for history, _, _ in records], default=0)
    changed, _ = interactions(text, HERE, OLD, NEW)
    meant = {**OLD, **NEW}
    before, after = (list(csv.DictReader(io.StringIO(t, newline=""))) for t in (text, changed))
    for was, now, (history, item, _) in zip(before, after, records, strict=True):
        assert literal_eval(now["history_item_sid"]) == [meant[i] for i in history if i in OLD]
        assert now["item_sid"] == meant[item]
        assert {k: v for k, v in was.items() if not k.endswith("_sid")} == {
            k: v for k, v in now.items() if not k.endswith("_sid")
        }
    back, _ = interactions(changed, HERE, meant, {i: OLD[i] for i in NEW})
    assert back == text


@pytest.mark.parametrize(
    ("history", "sids", "item", "sid"),
    [
        ("[0]", "['<a_3><b_4>']", "2", "<a_3><b_4>"),
        ("[0, 2]", "['<a_1><b_2>']", "2", "<a_3><b_4>"),
        ("[0]", "['<a_1><b_2>']", "5", "<a_3><b_4>"),
        ("[0]", "['<a_1><b_2>']", "2", "gone"),
        ("0", "['<a_1><b_2>']", "2", "<a_3><b_4>"),
        ("__import__('os')", "['<a_1><b_2>']", "2", "<a_3><b_4>"),
        ("[" * 5000, "['<a_1><b_2>']", "2", "<a_3><b_4>"),
    ],
)
def test_records_that_contradict_the_table_are_refused(history: str, sids: str, item: str, sid: str) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([HEAD, ["A1", "[]", "t", history, item, sids, sid]])
    with pytest.raises(TableError, match="file, record 1"):
        interactions(buffer.getvalue(), HERE, OLD)


def test_a_stray_quote_and_a_short_record_are_refused() -> None:
    for line in ('A1,[],t,[0],2,"[<a_1><b_2>]"x,<a_3><b_4>\n', "A1,[]\n"):
        with pytest.raises(TableError):
            interactions(",".join(HEAD) + "\n" + line, HERE, OLD)


def test_only_a_header_with_all_columns_makes_a_file_of_interactions() -> None:
    assert sid_columns(",".join(HEAD)) == {"history_item_id": 3, "item_id": 4, "history_item_sid": 5, "item_sid": 6}
    assert sid_columns("user_id,item_id") is None
    assert sid_columns("") is None


def test_item_lists_are_rewritten_record_by_record() -> None:
    text = "<a_1><b_2>\tone\t0\r\n<a_1><b_2>\ttwo\nlines\t1\n<a_3><b_4>\t<a_1><b_2>\t2\n<a_0><b_0>\t\t30"
    assert listed_items(text, HERE, OLD) == set(OLD)
    assert rewritten_list(text, {}, set()) == text
    assert rewritten_list(text, NEW, {"0"}) == (
        "<a_9><b_9>\ttwo\nlines\t1\n<a_3><b_4>\t<a_1><b_2>\t2\n<a_1><b_2>\t\t30"
    )
    for broken in ("title\t0\n", "<a_3><b_4>\tx\t0\n", "<a_1><b_2>\tx\t9\n", "<a_1><b_2>\t0\n"):
        with pytest.raises(TableError):
            listed_items(broken, HERE, OLD)
