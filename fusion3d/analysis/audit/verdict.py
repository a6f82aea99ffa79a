"""What an audit says in words: the card of a planner, what it reacts to, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusion3d.analysis.audit.changes import (
    ALL_EGO,
    ALL_SENSORS,
    FACTOR,
    NAMES,
    NO_EGO,
    NO_HISTORY,
    NO_SENSOR,
    NO_TARGETS,
    OTHER,
    UNKNOWN,
)
from fusion3d.analysis.audit.fields import fields_of
from fusion3d.analysis.audit.future import FutureCheck
from fusion3d.analysis.audit.numbers import more
from fusion3d.analysis.audit.run import ALONE, Audited

REACTS = 0.1  # [m] a plan that moves less at its last time, in the mean, takes no notice
COMPANY = 0.01  # [m] more than the rounding of other batch sizes moves a plan
STATUS = (
    f"status {OTHER}", "no status", f"speed x {FACTOR:g}", "speed x 0", "acceleration reversed", "yaw rate reversed",
)  # fmt: skip
WAY = (f"way since then x {FACTOR:g}", "way since then x 0")

Rows = Mapping[str, Mapping[str, Any]]  # those of ``measure`` by name


def find_leaks(rows: Rows, check: FutureCheck, declared: str) -> list[str]:
    """What must not reach a plan and does; nothing for an honest planner.

    - What it is scored by (boxes, future, map ...), spoiled or taken away, changes a plan by a single bit.
    - The names of samples and scenes do: answers can be looked up under them.
    - A plan depends on who else is in its batch, by more than ``COMPANY``: those may be later keyframes of its scene.
    - Measured status or past poses change it, and ``planning.ego_status`` says that they do not go in.
    - An input other than the command changes with what comes after the sample, or a later keyframe's file is read.

    Args:
        rows: of the changes.
        check: of what is read.
        declared: ``planning.ego_status``.
    """
    found = []
    targets = [row for row in rows.values() if row["group"] == "targets"]
    used = [row["name"].removeprefix("other ") for row in targets if row["name"] != NO_TARGETS and _matters(row)]
    whole = rows.get(NO_TARGETS)
    if used:
        found.append(f"targets: what the plan is scored by changes it: {', '.join(used)} ({_most(targets)})")
    elif whole is not None and _matters(whole):
        found.append(f"targets: without what the plan is scored by it is another ({_most([whole])})")
    if NAMES in rows and _matters(rows[NAMES]):
        found.append(f"names: the plan depends on what sample and scene are called ({_most([rows[NAMES]])})")
    alone = rows.get(ALONE.name)
    if alone is not None and alone["most"] > COMPANY:
        found.append(f"company: the plan depends on the other samples of its batch ({_most([alone])})")
    ego = [row for row in rows.values() if row["group"] == "ego" and _matters(row)]
    if ego and declared != "measured":
        found.append(f"ego status: planning.ego_status is {declared}, and measured motion goes in ({_most(ego)})")
    changed = {name: count for name, count in check.changed.items() if name != "command"}
    if changed:
        told = ", ".join(f"{name} in {count}" for name, count in changed.items())
        found.append(f"future: inputs change with what comes after: {told} of {check.samples} samples")
    if check.ahead:
        found.append(f"future: {len(check.ahead)} files of later than the sample are read, as {check.ahead[0]}")
    return found


def _matters(row: Mapping[str, Any]) -> bool:
    return row["refused"] is not None or row["different"] > 0


def _most(rows: Sequence[Mapping[str, Any]]) -> str:
    far = max((row["most"] for row in rows if row["refused"] is None), default=0.0)
    texts = [f"by up to {far:.3g} m"] if far else []
    texts += [f"no plan: {row['refused']}" for row in rows if row["refused"] is not None][:1]
    return "; ".join(texts) or "its heading alone"


def describe(audited: Audited, rows: Rows, check: FutureCheck) -> list[str]:
    """What the plan reacts to, in words. A mean of ``REACTS`` at the last time is a reaction.

    Sensors and the vehicle's own motion are compared alike: both are replaced by those of another scene, or, with a
    single scene, taken away.
    """
    pair = next((p for p in ((ALL_SENSORS, ALL_EGO), (NO_SENSOR, NO_EGO)) if _reach(rows, p[0]) is not None), None)
    told = [_character(audited, rows, *pair)] if pair else ["nothing can be said of its sensors: no plan without them"]
    ignored = [name for name in fields_of("sensor") if name_reach(rows, name) is not None and not _reacts(rows, name)]
    if ignored:
        told.append(f"takes no notice of {', '.join(ignored)}")
    command = _strongest(rows, "command")
    if command >= REACTS and "command" in check.changed:
        without = f"without it {_metres(_reach(rows, UNKNOWN))}, without any sensor {_metres(_reach(rows, NO_SENSOR))}"
        told.append(
            f"obeys a command that is made of the driven path ({without}): it is told where the drive ends, as "
            "published planners of nuScenes are"
        )
    for name in ("a day later", "elsewhere on the map"):
        if (reach := _reach(rows, name) or 0.0) >= REACTS:
            told.append(f"plans otherwise {name} ({reach:.2f} m): it may know its places and times by heart")
    if check.samples and not check.targets:
        told.append("what comes after could not be shuffled: nothing is said of it")
    return told


def _character(audited: Audited, rows: Rows, of_sensors: str, of_ego: str) -> str:
    sensors, ego, command = _reach(rows, of_sensors) or 0.0, _reach(rows, of_ego), _strongest(rows, "command")
    alone = "" if of_sensors == ALL_SENSORS else "; with one scene things are only taken away, not exchanged"
    if ego is not None and ego >= REACTS:
        difference, sure = more(audited, of_ego, of_sensors)
        chance = "" if sure else ", which may be chance"
        if difference > 0:
            return (
                f"reacts to the measured motion of the vehicle ({ego:.2f} m) more than to all sensors together "
                f"({sensors:.2f} m){chance}: an ego-status planner{alone}"
            )
        return (
            f"reacts to all sensors together ({sensors:.2f} m) more than to the measured motion of the vehicle "
            f"({ego:.2f} m){chance}{alone}"
        )
    if sensors >= REACTS:
        return f"reacts to its sensors ({sensors:.2f} m), not to the measured motion of the vehicle{alone}"
    if command >= REACTS:
        return f"reacts to the command alone (up to {command:.2f} m): it looks at nothing{alone}"
    return f"plans the same whatever it is given (sensors {sensors:.2f} m): it looks at nothing{alone}"


def make_card(
    rows: Rows, check: FutureCheck, declared: str, past: int, older_sweeps: Sequence[str] = (), odometry: bool = False
) -> dict[str, str]:
    """What goes into a planner, and how far it moves the plan at its last time.

    Args:
        rows: of the changes.
        check: of what is read.
        declared: ``planning.ego_status``.
        past: most keyframes before that a sample comes with.
        older_sweeps: sensors whose clouds hold more than the keyframe's own.
        odometry: do the radars' maps hold how fast the vehicle moves?
    """
    sensors = [f"{name} {_metres(name_reach(rows, name))}" for name in fields_of("sensor") if f"no {name}" in rows]
    status = max((reach for name in STATUS if (reach := _reach(rows, name)) is not None), default=None)
    way = max((reach for name in WAY if (reach := _reach(rows, name)) is not None), default=None)
    command = f"up to {_metres(_strongest(rows, 'command'))}"
    if "command" in check.changed:
        command += f"; made of the driven path: changes with it in {check.changed['command']} of {check.samples}"
    else:
        command += f"; does not change with the driven path in {check.samples} samples"
    before = f"{past}; without them {_metres(_reach(rows, NO_HISTORY))}" if past else "none"
    moved = [f"places the keyframes before: wrong by a factor {_metres(way)}"] * bool(past)
    if older_sweeps:
        moved.append(f"places older sweeps of {' and '.join(older_sweeps)}: not tried otherwise")
    moved += ["speed, as the radars measure it (radar.odometry)"] * odometry
    return {
        "sensors": ", ".join([*sensors, f"none at all {_metres(_reach(rows, NO_SENSOR))}"]) if sensors else "none",
        "ego in planner": f"{declared}; status moves it by {_metres(status)}",
        "ego in BEV": "; ".join(moved) or "nothing",
        "past poses": _metres(_reach(rows, f"past {OTHER}") or _reach(rows, "no past")),
        "command": command,
        "keyframes before": before,
        "time, place": f"{_metres(_reach(rows, 'a day later'))}, {_metres(_reach(rows, 'elsewhere on the map'))}",
        "files": f"{check.files} read, the newest {check.newest:+.3f} s from its sample, {len(check.ahead)} from ahead",
    }


def name_reach(rows: Rows, sensor: str) -> float | None:
    """How far a sensor of another scene moves the plan, or with one scene its absence."""
    reach = _reach(rows, f"{sensor} {OTHER}")
    return _reach(rows, f"no {sensor}") if reach is None else reach


def _reacts(rows: Rows, sensor: str) -> bool:
    return any((_reach(rows, name) or 0.0) >= REACTS for name in (f"{sensor} {OTHER}", f"no {sensor}"))


def _strongest(rows: Rows, group: str) -> float:
    return max((_reach(rows, name) or 0.0 for name, row in rows.items() if row["group"] == group), default=0.0)


def _reach(rows: Rows, name: str) -> float | None:
    """The mean way that plans move at their last time [m]; None where that is not known."""
    row = rows.get(name)
    return None if row is None or row["refused"] is not None else list(row["moved"].values())[-1]["mean"]


def _metres(reach: float | None) -> str:
    return "n/a" if reach is None else f"{reach:.2f} m"
