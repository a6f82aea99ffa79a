"""Compiled loops over the bytes of a JSON table: where each value lies, and what it says.

Everything here takes bytes as uint8 arrays and releases the interpreter, so that tables are read side by side.
"""

from __future__ import annotations

import numba
import numpy as np

MORE, END, NOT_AN_OBJECT, BROKEN = range(4)  # how ``scan_rows`` stopped

_QUOTE, _ESCAPE, _COLON, _COMMA, _MINUS, _PLUS, _DOT, _ZERO, _NINE = (ord(c) for c in '"\\:,-+.09')
_OPEN_LIST, _CLOSE_LIST, _OPEN_OBJECT, _CLOSE_OBJECT, _SPACE, _EXPONENT = (ord(c) for c in "[]{} e")
_TAB, _LINE_FEED, _RETURN, _LOWER = 9, 10, 13, 32  # the last: of a letter, what small ones have and capitals have not
_POWERS = np.array([float(10**n) for n in range(23)])  # those that a double holds exactly
_EXACT = 1 << 53
# The C library's. strtod rounds correctly; it is only asked about what was seen to be a number, and where that ends.
_address, _C = numba.types.uintp, numba.types.ExternalFunction
_memchr = _C("memchr", _address(_address, numba.types.intc, numba.types.uintp))
_memcpy = _C("memcpy", _address(_address, _address, numba.types.uintp))
_strtod = _C("strtod", numba.types.float64(_address, _address))


@numba.njit(cache=True, nogil=True, inline="always")
def _skip(text: np.ndarray, at: int) -> int:
    """Past white space."""
    while at < len(text) and (text[at] == _SPACE or text[at] == _LINE_FEED or text[at] == _RETURN or text[at] == _TAB):
        at += 1
    return at


@numba.njit(cache=True, nogil=True)
def find_byte(text: np.ndarray, at: int, byte: int) -> int:
    """Where the first such byte is, from ``at`` on; -1 where there is none."""
    base = np.uintp(text.ctypes.data)
    found = _memchr(base + np.uintp(at), byte, np.uintp(len(text) - at))
    return int(np.int64(found - base)) if found != 0 else -1


@numba.njit(cache=True, nogil=True)
def _string_end(text: np.ndarray, at: int) -> int:
    """The closing quote of a string whose first character is at ``at``; -1 where there is none."""
    while at < len(text):
        quote = find_byte(text, at, _QUOTE)
        before = quote
        while before > at and text[before - 1] == _ESCAPE:
            before -= 1
        if (quote - before) % 2 == 0:  # none, too
            return quote
        at = quote + 1
    return -1


@numba.njit(cache=True, nogil=True)
def _value_end(text: np.ndarray, at: int) -> int:
    """One past the value that begins at ``at``; -1 where none does, or it has no end."""
    begin, depth = at, 0
    if at < len(text) and text[at] == _QUOTE:
        return _string_end(text, at + 1) + 1 or -1
    while at < len(text):
        here = text[at]
        if here == _QUOTE:
            at = _string_end(text, at + 1)
            if at < 0:
                return -1
        elif here in (_OPEN_LIST, _OPEN_OBJECT):
            depth += 1
        elif here in (_CLOSE_LIST, _CLOSE_OBJECT):
            depth -= 1
            if depth == 0:
                return at + 1 if text[at] == text[begin] + 2 else -1  # "[" and "]", as "{" and "}", are 2 apart
            if depth < 0:
                return at if at > begin else -1  # the row's end
        elif depth == 0 and (here == _COMMA or here <= _SPACE):
            return at if at > begin else -1
        at += 1
    return -1


@numba.njit(cache=True, nogil=True)
def scan_rows(text: np.ndarray, at: int, keys: np.ndarray, spans: np.ndarray) -> tuple[int, int, int, int]:
    """Find the values of the next rows of an array of objects.

    Args:
        text: [N] uint8, a piece of the file.
        at: where to go on: past the bracket at the beginning, or at a row.
        keys: [K, W] uint8, the wanted keys, filled up with 0.
        spans: [R, K, 2] int64, is filled: beginning and end of each value, -1 where a row lacks the key.

    Returns:
        The number of whole rows found; where the next one is, or where it ends; why it stopped, and where.
    """
    at = _skip(text, at)
    if at < len(text) and text[at] == _CLOSE_LIST:
        return 0, at + 1, END, at
    for row in range(len(spans)):
        begin = at
        if at >= len(text) or text[at] != _OPEN_OBJECT:
            return row, begin, NOT_AN_OBJECT if at < len(text) else BROKEN, at
        spans[row] = -1
        at = _scan_row(text, at + 1, keys, spans[row])
        if at < 0:
            return row, begin, BROKEN, -at
        at = _skip(text, at)
        if at < len(text) and text[at] == _CLOSE_LIST:
            return row + 1, at + 1, END, at
        if at >= len(text) or text[at] != _COMMA:
            return row, begin, BROKEN, at
        at = _skip(text, at + 1)
    return len(spans), at, MORE, at


@numba.njit(cache=True, nogil=True)
def _scan_row(text: np.ndarray, at: int, keys: np.ndarray, spans: np.ndarray) -> int:
    """Find the values [K, 2] of a row whose first key is at ``at``; one past its end, or less than 0 for "not here"."""
    at = _skip(text, at)
    if at < len(text) and text[at] == _CLOSE_OBJECT:
        return at + 1
    while at < len(text) and text[at] == _QUOTE:
        begin = at + 1
        end = _string_end(text, begin)
        if end < 0:
            return -at
        at = _skip(text, end + 1)
        if at >= len(text) or text[at] != _COLON:
            return -at
        value = _skip(text, at + 1)
        at = _value_end(text, value)
        if at < 0:
            return -value
        for k in range(len(keys)):
            if _is_key(text, begin, end, keys[k]):
                spans[k, 0] = value
                spans[k, 1] = at
                break
        at = _skip(text, at)
        if at < len(text) and text[at] == _CLOSE_OBJECT:
            return at + 1
        if at >= len(text) or text[at] != _COMMA:
            return -at
        at = _skip(text, at + 1)
    return -at


@numba.njit(cache=True, nogil=True, inline="always")
def _is_key(text: np.ndarray, begin: int, end: int, key: np.ndarray) -> bool:
    size = end - begin
    if size > len(key) or (size < len(key) and key[size] != 0):
        return False
    for i in range(size):
        if text[begin + i] != key[i]:
            return False
    return True


@numba.njit(cache=True, nogil=True)
def copy_strings(text: np.ndarray, spans: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Copy the bytes of each span [n, 2] into a row of ``out`` [n, W] of zeros.

    Returns:
        True [n] where some of them are not plain: escapes, control codes, or not ASCII.
    """
    special = np.zeros(len(spans), dtype=np.bool_)
    for row in range(len(spans)):
        begin, end = spans[row]
        _memcpy(out[row].ctypes.data, text.ctypes.data + np.uintp(begin), np.uintp(end - begin))
        found = False
        for i in range(begin, end):
            found |= (text[i] >= 128) | (text[i] == _ESCAPE) | (text[i] < _SPACE)
        special[row] = found
    return special


@numba.njit(cache=True, nogil=True)
def copy_rows(rows: np.ndarray, out: np.ndarray) -> None:
    """Copy bytes [n, w] to the beginnings of rows that are as wide or wider, [n, W]."""
    width = np.uintp(rows.shape[1])
    for row in range(len(rows)):
        _memcpy(out[row].ctypes.data, rows[row].ctypes.data, width)


@numba.njit(cache=True, nogil=True)
def read_integers(text: np.ndarray, spans: np.ndarray, first: int, out: np.ndarray) -> int:
    """Read whole numbers, from row ``first`` on, into ``out`` [n] int64; the row that needs a closer look, or -1."""
    for row in range(first, len(spans)):
        at, end = spans[row]
        negative = text[at] == _MINUS
        at += negative
        if not 0 < end - at <= 18 or (text[at] == _ZERO and end - at > 1):
            return row
        value = 0
        while at < end:
            if not _ZERO <= text[at] <= _NINE:
                return row
            value = value * 10 + np.int64(text[at] - _ZERO)
            at += 1
        out[row] = -value if negative else value
    return -1


@numba.njit(cache=True, nogil=True)
def read_vectors(text: np.ndarray, spans: np.ndarray, first: int, out: np.ndarray) -> int:
    """Read lists of numbers, correctly rounded, from row ``first`` on; the row that needs a closer look, or -1.

    Args:
        text: [N] uint8.
        spans: [n, 2] int64, of the lists.
        first: row to begin with.
        out: [n, k] float64, is filled.
    """
    stopped = np.zeros(1, dtype=np.uintp)
    count = out.shape[1]
    for row in range(first, len(spans)):
        at, end = spans[row, 0] + 1, spans[row, 1] - 1  # between the brackets
        if text[at - 1] != _OPEN_LIST or text[end] != _CLOSE_LIST:
            return row
        for k in range(count):
            at = _skip(text, at)
            after = _number_end(text, at)
            if after < 0:
                return row
            value, exact = _short_number(text, at, after)
            if not exact:
                value = _strtod(text.ctypes.data + np.uintp(at), stopped.ctypes.data)
                if np.int64(stopped[0]) - np.int64(text.ctypes.data) != after:  # another decimal point is the custom
                    return row
            out[row, k] = value
            at = _skip(text, after)
            if text[at] != (_COMMA if k < count - 1 else _CLOSE_LIST):
                return row
            at += 1
        if at != end + 1:
            return row
    return -1


@numba.njit(cache=True, nogil=True, inline="always")
def _digits_end(text: np.ndarray, at: int) -> int:
    while at < len(text) and _ZERO <= text[at] <= _NINE:
        at += 1
    return at


@numba.njit(cache=True, nogil=True)
def _number_end(text: np.ndarray, at: int) -> int:
    """One past the number of JSON that begins at ``at`` and is followed by something; -1 where there is none."""
    if at < len(text) and text[at] == _MINUS:
        at += 1
    first = at
    at = _digits_end(text, at)
    if at == first or (at - first > 1 and text[first] == _ZERO):
        return -1
    if at < len(text) and text[at] == _DOT:
        first = at + 1
        at = _digits_end(text, first)
        if at == first:
            return -1
    if at < len(text) and text[at] | _LOWER == _EXPONENT:
        at += 1
        if at < len(text) and (text[at] == _MINUS or text[at] == _PLUS):
            at += 1
        first = at
        at = _digits_end(text, first)
        if at == first:
            return -1
    return at if at < len(text) else -1


@numba.njit(cache=True, nogil=True)
def _short_number(text: np.ndarray, at: int, end: int) -> tuple[float, bool]:
    """The number there, and whether it is exact: where a double holds all digits, and no exponent follows.

    One division of two doubles that are exact is correctly rounded (Clinger 1990, How to read floating point numbers
    accurately).
    """
    negative = text[at] == _MINUS
    digits, places, behind = 0, 0, 0
    for i in range(at + negative, end):
        here = text[i]
        if here == _DOT:
            behind = 1
        elif here > _NINE:
            return 0.0, False
        else:
            digits = digits * 10 + np.int64(here - _ZERO)
            places += behind
            if digits > _EXACT or places > 22:
                return 0.0, False
    value = digits / _POWERS[places]
    return -value if negative else value, True


@numba.njit(cache=True, nogil=True, inline="always")
def _hash(word: np.ndarray) -> np.uint64:
    """Of eight bytes after the other, up to those that are all 0 (after MurmurHash3)."""
    state = np.uint64(14695981039346656037)
    for part in word:
        if part == 0:
            break
        state = (state ^ part) * np.uint64(0xFF51AFD7ED558CCD)
        state ^= state >> np.uint64(32)
    state = (state ^ (state >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)  # every bit moves the lowest ones
    return state ^ (state >> np.uint64(33))


@numba.njit(cache=True, nogil=True, inline="always")
def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Are they the same up to the zeros at their ends?"""
    both = min(len(one), len(other))
    for i in range(both):
        if one[i] != other[i]:
            return False
    return (len(one) == both or one[both] == 0) and (len(other) == both or other[both] == 0)


@numba.njit(cache=True, nogil=True)
def make_index(table: np.ndarray) -> np.ndarray:
    """Where the rows of ``table`` [m, V] are found: slots, int32, each with a row or -1; of equal rows the first.

    The table is uint64: strings of eight bytes after the other, filled up with 0, of which they have none themselves.
    """
    size = 16
    while size < 2 * len(table):
        size *= 2
    index = np.full(size, -1, dtype=np.int32)
    for row in range(len(table)):
        slot = _find(table[row], table, index)
        if index[slot] < 0:
            index[slot] = row
    return index


@numba.njit(cache=True, nogil=True, inline="always")
def _find(word: np.ndarray, table: np.ndarray, index: np.ndarray) -> np.uint64:
    """The slot of a word's row, or the empty one where it would be."""
    last = np.uint64(len(index) - 1)
    slot = _hash(word) & last
    while index[slot] >= 0 and not _equal(table[index[slot]], word):
        slot = (slot + np.uint64(1)) & last
    return slot


@numba.njit(cache=True, nogil=True)
def find_rows(words: np.ndarray, table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """[n] int32: the first row of ``table`` that is the word, for each of ``words`` [n, W]; -1 for none.

    ``index`` is the table's, of ``make_index``; words are written as its rows are.
    """
    found = np.empty(len(words), dtype=np.int32)
    for i in range(len(words)):
        found[i] = index[_find(words[i], table, index)]
    return found


@numba.njit(cache=True, nogil=True)
def split_names(names: np.ndarray, first: np.ndarray, last: np.ndarray) -> None:
    """Copy each name [n, W] up to its last ``__`` into ``first`` and the rest into ``last``, both [n, W] of zeros."""
    underscore, width = ord("_"), names.shape[1]
    for row in range(len(names)):
        cut = 0
        for i in range(width - 1, 0, -1):
            if names[row, i] == underscore and names[row, i - 1] == underscore:
                cut = i + 1
                break
        source = names[row].ctypes.data
        _memcpy(first[row].ctypes.data, source, np.uintp(cut))
        _memcpy(last[row].ctypes.data, source + np.uintp(cut), np.uintp(width - cut))
