"""A table's columns against Python's reading of the same JSON, and what is said of tables that are damaged."""

from __future__ import annotations

import json
import locale
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusion3d.data import columns
from fusion3d.data import table_kernels as kernels
from fusion3d.data.columns import Columns, Index, split_names
from fusion3d.errors import DataError

KINDS = {"name": str, "count": int, "flag": bool, "vector": 3, "tags": list}
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
OTHER = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "name": WORDS,
            "count": st.integers(-(10**18) + 1, 10**18 - 1),
            "flag": st.booleans(),
            "vector": st.lists(st.floats() | st.integers(-(10**20), 10**20), min_size=3, max_size=3),
            "tags": st.lists(WORDS, max_size=2),
            "other": OTHER,
            "tok": OTHER,
        }
    ),
    max_size=9,
)


@st.composite
def tables(draw) -> tuple[list[dict], str]:
    """Rows with tokens, their keys in any order, and their text in one of the ways that it is written."""
    rows = [{**row, "token": f"{number:032x}"} for number, row in enumerate(draw(ROWS))]
    rows = [dict(draw(st.permutations(list(row.items())))) for row in rows]
    indent, ascii_only = draw(st.sampled_from([None, 0, 2])), draw(st.booleans())
    separators = draw(st.sampled_from([None, (",", ":"), (" ,\n", " : ")]))
    return rows, json.dumps(rows, indent=indent, ensure_ascii=ascii_only, separators=separators)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("columns") / "table.json"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=tables(), chunk=st.sampled_from([1, 2, 1000]), piece=st.sampled_from([1, 7, 300, 1 << 16]))
def test_columns_are_what_python_reads(path, monkeypatch, table, chunk, piece):
    rows, text = table
    monkeypatch.setattr(columns, "CHUNK", chunk)
    monkeypatch.setattr(columns, "PIECE", piece)
    path.write_text(text, encoding="utf-8")
    found = Columns(path, KINDS)
    assert len(found) == len(rows)
    for key in ("token", "name"):
        assert found.words(key) == [row[key] for row in rows] and found[key].dtype.kind == "S"
    assert found["count"].dtype == np.int64 and found["count"].tolist() == [row["count"] for row in rows]
    assert found["flag"].dtype == bool and found["flag"].tolist() == [row["flag"] for row in rows]
    assert found["tags"] == [row["tags"] for row in rows]
    expected = np.array([[float(value) for value in row["vector"]] for row in rows]).reshape(-1, 3)
    assert str(found["vector"].tolist()) == str(expected.tolist())  # signs of zero too


@given(
    number=st.floats(allow_nan=False, allow_infinity=False), form=st.sampled_from(["r", ".17g", ".25e", ".3f", ".16f"])
)
@settings(max_examples=400, deadline=None)
def test_numbers_are_rounded_as_python_rounds_them(path, number, form):
    text = repr(number) if form == "r" else format(number, form)
    path.write_text(f'[{{"token":"a","vector":[{text},-{text.lstrip("-")} , 5e-324\n]}}]')
    found = Columns(path, {"vector": 3})["vector"][0]
    expected = [float(text), -float(text.lstrip("-")), 5e-324]
    assert [math.copysign(1, value) for value in found] == [math.copysign(1, value) for value in expected]
    assert found.tolist() == expected


@settings(max_examples=150, deadline=None)
@given(table=tables(), data=st.data())
def test_a_damaged_table_is_an_error_or_read_as_python_does(path, table, data):
    text = table[1].rstrip().encode()
    cut = data.draw(st.integers(0, len(text) - 1))
    path.write_bytes(text[:cut])
    with pytest.raises(DataError, match=r"table\.json"):
        Columns(path, KINDS)
    damaged = text[:cut] + data.draw(st.binary(min_size=1, max_size=1)) + text[cut + 1 :]
    path.write_bytes(damaged)
    try:
        found = Columns(path, KINDS)
    except DataError as error:
        assert "table.json" in str(error)
        return
    try:
        rows = json.loads(damaged)
    except ValueError:
        assert b"other" in damaged or b"tok" in damaged  # values that are not asked for are not looked at closely
        return
    assert found["count"].tolist() == [row["count"] for row in rows]
    assert found.words("name") == [row["name"] for row in rows]


@pytest.mark.parametrize(
    "number", ["0x10", "+1", ".5", "5.", "01", "-01", "inf", "nan(1)", "1e", "1_0", "--1", "-", "tru"]
)
def test_what_python_does_not_take_for_a_number_is_none(path, number):
    path.write_text(f'[{{"token":"a","vector":[{number},1],"count":1}}]')
    with pytest.raises(DataError, match="a list of 2 numbers"):
        Columns(path, {"vector": 2})
    path.write_text(f'[{{"token":"a","count":{number}}}]')
    with pytest.raises(DataError, match="expected int"):
        Columns(path, {"count": int})


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1E+2", "1e400", "-0.0", "9223372036854775807", "0.1e-400"])
def test_rare_numbers_are_what_python_reads(path, number):
    path.write_text(f'[{{"token":"a","vector":[2,{number}]}},{{"token":"b","vector":[ 3 , 4 ]}}]')
    expected = [[2.0, float(json.loads(number))], [3.0, 4.0]]
    assert str(Columns(path, {"vector": 2})["vector"].tolist()) == str(expected)


def test_whole_numbers_of_64_bits_are_read(path):
    for number in (2**63 - 1, -(2**63)):
        path.write_text(json.dumps([{"token": "a", "count": number}]))
        assert Columns(path, {"count": int})["count"].tolist() == [number]


def test_numbers_do_not_depend_on_the_decimal_point_of_the_place(path):
    """Where strtod takes a comma for the decimal point it stops elsewhere, and Python reads the row."""
    other = next((name for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "de_DE", "fr_FR") if _can_set(name)), None)
    if other is None:
        pytest.skip("no locale with a decimal comma is installed")
    path.write_text('[{"token":"a","vector":[0.98319871111245391,1,12345678901234567890]}]')
    try:
        locale.setlocale(locale.LC_NUMERIC, other)
        assert Columns(path, {"vector": 3})["vector"].tolist() == [[0.98319871111245391, 1, 12345678901234567890]]
    finally:
        locale.setlocale(locale.LC_NUMERIC, "C")


def _can_set(name: str) -> bool:
    before = locale.setlocale(locale.LC_NUMERIC)
    try:
        locale.setlocale(locale.LC_NUMERIC, name)
    except locale.Error:
        return False
    locale.setlocale(locale.LC_NUMERIC, before)
    return True


def test_a_page_of_zeros_is_not_skipped(path):
    rows = [{"token": f"{n:032x}", "other": "words", "count": n} for n in range(500)]
    text = bytearray(json.dumps(rows, indent=0).encode())
    first, last = (text.index(b"words", at) + 2 for at in (2000, 9000))
    text[first:last] = bytes(last - first)
    path.write_bytes(text)
    with pytest.raises(DataError, match="no valid JSON"):
        Columns(path, {"count": int})


def test_room_is_bounded_by_the_longest(path, monkeypatch):
    rows = [{"token": str(number), "name": "n" * (3000 if number == 7 else 3)} for number in range(100)]
    path.write_text(json.dumps(rows))
    assert Columns(path, {"name": str}).words("name")[7] == "n" * 3000
    monkeypatch.setattr(columns, "CHUNK", 50)
    monkeypatch.setattr(columns, "ROOM", 50 * 3000)
    with pytest.raises(DataError, match=r'row 7 \(token "7"\): name: expected str that is shorter, found "nnn'):
        Columns(path, {"name": str})
    monkeypatch.setattr(columns, "CHUNK", 10)
    monkeypatch.setattr(columns, "ROOM", 10 * 3100)
    rows += [{"token": f"more {number}", "name": "n"} for number in range(1000)]
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match="name: one value has 3000 bytes, far more than the others"):
        Columns(path, {"name": str})


def test_what_follows_a_table_is_seen_wherever_it_is_read(path, monkeypatch):
    for piece in (15, 16, 17, 40):
        monkeypatch.setattr(columns, "PIECE", piece)
        path.write_text('[{"token":"a"}]' + " " * 50 + "x")
        with pytest.raises(DataError, match=r"no valid JSON \(found b' *x'"):
            Columns(path, {})
        path.write_text('[{"token":"a"}]' + " " * 50)
        assert len(Columns(path, {})) == 1


def test_nesting_without_end_is_an_error(path):
    deep = "[" * 5000 + "]" * 5000
    path.write_text(f'[{{"token":"a","tags":{deep},"x":{"[" * 100000}{"]" * 100000}}}]')
    with pytest.raises(DataError, match="tags: expected a list"):
        Columns(path, {"tags": list})
    with pytest.raises(DataError, match="x: expected a list"):
        Columns(path, {"x": list})
    path.write_text('[{"token":"a","tags":[["b"]]}]')
    with pytest.raises(DataError, match="expected a list of strings"):
        Columns(path, {"tags": list[str]})
    assert Columns(path, {"tags": list})["tags"] == [[["b"]]]


ROW = {"token": "a", "name": "n", "count": 1, "flag": True, "vector": [1, 2, 3], "tags": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "name: expected str, found 3"),
        ({"name": None}, "name: expected str, found null"),
        ({"name": "\0"}, "name: expected str"),
        ({"count": 1.5}, "count: expected int, found 1.5"),
        ({"count": "1"}, 'count: expected int, found "1"'),
        ({"count": 10**30}, "count: expected int"),
        ({"vector": [math.nan, 1, 10**400]}, "a list of 3 numbers"),
        ({"flag": 1}, "flag: expected bool, found 1"),
        ({"vector": [1, 2]}, r"vector: expected a list of 3 numbers, found \[1, 2\]"),
        ({"vector": [1, 2, 3, 4]}, "a list of 3 numbers"),
        ({"vector": [1, 2, "3"]}, "a list of 3 numbers"),
        ({"vector": [1, 2, [3]]}, "a list of 3 numbers"),
        ({"vector": [1, 2, True]}, "a list of 3 numbers"),
        ({"vector": {"x": 1}}, "a list of 3 numbers"),
        ({"tags": "a"}, "tags: expected list"),
        ({"token": 7}, "token: expected str, found 7"),
    ],
)
def test_what_does_not_fit_is_named(path, change, message):
    path.write_text(json.dumps([{**ROW, "token": "first"}, {**ROW, **change}]))
    with pytest.raises(DataError, match=rf"row 1 \(token .*{message}"):
        Columns(path, KINDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a JSON array"),
        ("{}", "expected a JSON array"),
        ("[1]", "expected an array of objects"),
        ('[{"token" "a"}]', "no valid JSON .*at byte 10"),
        ('[{"token":"a"} {"token":"b"}]', "no valid JSON .*at byte 15"),
        ('[{"token":"a"},]', "array of objects"),
        ('[{"token":"a",}]', "no valid JSON"),
        ("[,]", "array of objects"),
        ('[{"token":"a"}][{"token":"b"}]', "no valid JSON"),
        ('[{"token":"a" "x":1}]', "no valid JSON"),
        ('[{"token":"a\n"}]', "token: expected str"),
        ('[{"token":"a\0","x":1}]', "no valid JSON"),
        ('[{"token":""}]', "a token is empty"),
        ('[{"token":"a",3:1}]', "no valid JSON"),
        ('[{"token":"a","x":[1}}]', "no valid JSON"),
        ('[{"token":"a","x":}]', "no valid JSON"),
        ('[{"token":"a"}', "cut off"),
        ('[{"token":"a', "no valid JSON"),
        ('[{"token":"a"},{"token":"a"}]', "occurs twice"),
    ],
)
def test_what_is_no_table_is_said(path, text, message):
    path.write_text(text)
    with pytest.raises(DataError, match=rf"(?s)table\.json.*{message}"):
        Columns(path, {})


def test_bytes_that_are_no_text_are_refused(path):
    path.write_bytes(b'[{"token":"\xff"}]')
    with pytest.raises(DataError, match="token: expected str"):
        Columns(path, {})
    path.write_bytes(b'[{"token":"a","tags":["\xff"]}]')
    with pytest.raises(DataError, match=r"tags: expected a list, found"):
        Columns(path, {"tags": list})


WIDE = st.lists(st.text("ab", max_size=20), max_size=30)


@given(words=WIDE, table=WIDE)
@settings(deadline=None)
def test_words_are_found_where_they_stand_first(words, table):
    as_bytes = [np.array([word.encode() for word in of] or [b""])[: len(of)] for of in (words, table)]
    expected = [table.index(word) if word in table else -1 for word in words]
    assert Index(as_bytes[1]).find(as_bytes[0]).tolist() == expected


@pytest.mark.parametrize("place", range(32))
def test_tokens_that_are_counted_fall_into_different_slots(place):
    """Four slots for each: by chance 88 % of the tokens have one of their own. The digits count at any place."""
    tokens = np.array([("0" * 32 + f"{n:06x}" + "0" * 32)[place : place + 32].encode() for n in range(1 << 12)])
    different = len(np.unique(tokens))
    words = tokens.view(np.uint64).reshape(len(tokens), 4)
    slots = {int(kernels._hash(word)) % (1 << 14) for word in words}
    assert len(slots) > 0.8 * different


@given(names=st.lists(st.text("a_", max_size=9), min_size=1, max_size=9))
@settings(deadline=None)
def test_names_are_split_after_their_last_double_underscore(names):
    parts = [name.rpartition("__") for name in names]
    first, last = split_names(np.array([name.encode() for name in names]))
    assert first.tolist() == [(part[0] + part[1]).encode() for part in parts]
    assert last.tolist() == [part[2].encode() for part in parts]
