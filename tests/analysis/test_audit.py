"""The audit of planners, on planners whose plans are known to depend on this or that, and on data sets that leak."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion3d.analysis.audit import run as audit_run
from fusion3d.analysis.audit.changes import all_changes
from fusion3d.analysis.audit.fields import ROLES, fields_of, same, sensors_alone
from fusion3d.analysis.audit.future import check_future
from fusion3d.analysis.audit.main import FILE, audit, audit_planner, format_audit, main
from fusion3d.analysis.audit.run import choose_samples
from fusion3d.cli import run
from fusion3d.config import DataConfig
from fusion3d.data.annotations import load_ego
from fusion3d.data.corruptions import Corruptor
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.engine.drives import drives_of
from fusion3d.errors import ConfigError, DataError, Fusion3DError
from fusion3d.types import Batch, BEVGrid, Predictions, Trajectory

sys.path.insert(0, str(Path(__file__).parent))
from small_models import batch_of, on_synthetic, saved, small

TIME = 0.5 * torch.arange(1, 7)[:, None]  # [T, 1]
CPU = torch.device("cpu")


class Planner(torch.nn.Module):
    """Plans whatever a function of the batch says, [B, 6, 2]."""

    def __init__(self, says) -> None:
        super().__init__()
        self.says = says

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.says(batch).float()

    def decode(self, plan: torch.Tensor, batch: Batch) -> Predictions:
        yaw = torch.zeros(plan.shape[:2])
        return Predictions(batch.tokens, plan=Trajectory(plan, yaw, torch.ones_like(yaw, dtype=torch.bool)))


def nowhere(batch: Batch) -> torch.Tensor:
    return torch.zeros(len(batch), 6, 2)


def by_status(batch: Batch) -> torch.Tensor:
    return nowhere(batch) if batch.status is None else batch.status.velocity.nan_to_num()[:, None] * TIME


def by_lidar(batch: Batch) -> torch.Tensor:
    if batch.lidar is None:
        return nowhere(batch)
    points, index = batch.lidar.points[:, :2], batch.lidar.batch_index
    mean = torch.stack([points[index == row].double().mean(0) for row in range(len(batch))])
    return mean[:, None] * TIME


class Read:
    """A data set that keeps what it has read."""

    def __init__(self, dataset: NuScenesDataset) -> None:
        self.dataset, self.kept = dataset, {}

    def __getattr__(self, name: str):
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key):
        if key not in self.kept:
            self.kept[key] = self.dataset[key]
        return self.kept[key]


def opened(root: Path, split: str = "all", kind: type = NuScenesDataset, **changes) -> NuScenesDataset:
    settings = {"version": "v1.0-synthetic", "sensors": ("lidar", "radar"), "lidar_sweeps": 2, "radar_sweeps": 2}
    return kind(DataConfig(root=str(root), **(settings | changes)), split, BEVGrid())


@pytest.fixture(scope="module")
def dataset(synthetic_root):
    return Read(opened(synthetic_root))


@pytest.fixture(scope="module", autouse=True)
def check_once():
    """The data set is the same for all planners: what is read of its samples is checked once."""
    found: dict = {}

    def checked(data: Read, chosen):
        key = id(data), *chosen
        if key not in found:
            found[key] = check_future(getattr(data, "dataset", data), chosen), data  # which keeps its id
        return found[key][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusion3d.analysis.audit.main.check_future", checked)
        yield


def audited(says, dataset, count: int = 9, batch_size: int = 4, declared: str = "none") -> dict:
    return audit(Planner(says).eval(), dataset, count, batch_size, CPU, declared)


def row(found: dict, name: str) -> dict:
    return next(row for row in found["changes"] if row["name"] == name)


def test_every_field_of_a_batch_has_a_role():
    assert list(ROLES) and set(ROLES) == {field.name for field in dataclasses.fields(Batch)}, (
        "a new field of Batch: say in analysis/audit/fields.ROLES whether a model may look at it"
    )
    assert set(ROLES.values()) == {"name", "place", "frame", "sensor", "ego", "command", "history", "target"}


def test_every_change_changes_what_its_group_says_and_nothing_else():
    config = small(temporal={"keyframes": 3})
    batch, other = batch_of(config, 2), batch_of(config, 2, seed=5)
    batch = dataclasses.replace(
        batch,
        status=dataclasses.replace(batch.status, acceleration=torch.ones(2, 2), yaw_rate=torch.ones(2)),
        command=torch.tensor([0, 2]),
    )
    role = {"sensors": "sensor", "names": "name", "targets": "target"}
    seen = set()
    for change in all_changes():
        concerned = change.concerns(batch)
        assert concerned.any() and concerned.shape == (2,)
        changed = change.make(batch, other)
        fields = {name for name in ROLES if not same(getattr(batch, name), getattr(changed, name))}
        seen |= fields
        allowed = set(fields_of(role.get(change.group, change.group)))
        through = {"history"} if change.group in ("sensors", "place", "names") else set()
        assert fields and fields <= allowed | through, change.name
        assert through <= fields, f"{change.name}: the past is as it was"
        if change.group in ("place", "history", "names"):
            for old, new in zip(batch.history, changed.history, strict=False):
                inside = {name for name in ROLES if not same(getattr(old.batch, name), getattr(new.batch, name))}
                moved = {"global_from_ego"} if change.name.startswith("way") else set(fields_of("sensor"))
                assert inside and inside <= (moved if change.group == "history" else allowed)
        assert len(changed) == 2 and changed.command.shape == (2,)
    assert seen == set(ROLES) - {"aug_from_ego"}
    alone = sensors_alone(batch)
    assert all(same(getattr(batch, name), getattr(alone, name)) for name in fields_of("sensor", "frame"))
    assert not any(same(getattr(batch, name), getattr(alone, name)) for name in fields_of("place", "name", "ego"))


def test_a_planner_that_looks_at_its_speed_alone_is_called_so(dataset):
    found = audited(by_status, dataset)
    told = [dataset[0, index] for index in choose_samples(dataset.scenes, 9, 6)]
    assert found["samples"] == 9 and found["scenes"] == 3
    speed = torch.stack([sample.status.velocity for sample in told]).norm(dim=1)
    assert speed.isfinite().all(), "those without a past are left out"
    for name, share in (("speed x 5", 4), ("speed x 0", 1), ("no status", 1), ("no ego", 1)):
        for seconds in (1, 2, 3):
            mean = row(found, name)["moved"][f"{seconds}s"]["mean"]
            assert mean == pytest.approx(float(share * seconds * speed.mean()), rel=1e-5)
    assert row(found, "speed x 5")["N"] == 9
    for name in ("no lidar", "all sensors of another scene", "yaw rate reversed", "command left", "a day later"):
        assert row(found, name)["different"] == 0 and row(found, name)["most"] == 0
    slow, fast = (row(found, "speed x 0")["speeds"][name] for name in ("< 3 m/s", "3-8 m/s"))
    assert slow is None or slow == pytest.approx(float(3 * speed[speed < 3].mean()), rel=1e-4)
    assert fast is None or 9 <= fast <= 24
    assert "an ego-status planner" in found["says"][0] and "takes no notice of lidar, radar" in found["says"][1]
    assert len(found["leaks"]) == 1 and "planning.ego_status is none" in found["leaks"][0]
    assert audited(by_status, dataset, declared="measured")["leaks"] == []
    assert "planning.ego_status is predicted" in audited(by_status, dataset, declared="predicted")["leaks"][0]
    by_past = lambda batch: nowhere(batch) if batch.past is None else batch.past.position[:, :1] * -2 * TIME  # noqa: E731
    assert "measured motion goes in" in audited(by_past, dataset, 4)["leaks"][0]


def test_how_much_farther_from_the_driven_path(dataset):
    found = row(audited(by_status, dataset), "speed x 0")
    chosen = choose_samples(dataset.scenes, 9, 6)
    drives = drives_of(dataset.tables, [dataset.tokens[index] for index in chosen])
    for seconds in (1, 2):
        step, gains = 2 * seconds - 1, []
        for number, index in enumerate(chosen):
            if drives.known[number, step]:
                end = drives.future[number, step, :2]
                planned = seconds * dataset[0, index].status.velocity.numpy()
                gains.append(np.linalg.norm(end) - np.linalg.norm(planned - end))
        assert found["L2"][f"{seconds}s"]["mean"] == pytest.approx(np.mean(gains), abs=1e-5)
        assert found["L2"][f"{seconds}s"]["N"] == len(gains) > 0
    assert found["L2"]["3s"]["mean"] is None, "scenes of six keyframes have no three seconds of future"


def shy(says, field: str):
    """Looks at a target where it is there, and is honest where it is not."""
    return lambda batch: by_lidar(batch) if getattr(batch, field) is None else by_lidar(batch) + says(batch)


CHEATS = {
    "future": lambda batch: 1e-3 * batch.future.position,
    "boxes": lambda batch: torch.stack([b.center[:, :2].sum(0) for b in batch.boxes])[:, None] * TIME,
    "annotated": lambda batch: batch.annotated[:, None, None] * TIME,
}


@pytest.mark.parametrize("field", CHEATS)
@pytest.mark.parametrize("manner", ["shy", "bold"])
def test_a_planner_that_looks_at_the_answer_is_caught(dataset, field, manner):
    says = CHEATS[field]
    found = audited(shy(says, field) if manner == "shy" else lambda b: by_lidar(b) + says(b), dataset, 4)
    (leak,) = found["leaks"]
    assert leak.startswith(f"targets: what the plan is scored by changes it: {field} (by up to")
    if manner == "bold" and field == "future":
        assert "no plan: AttributeError" in leak and row(found, "no targets")["refused"]
        assert "n/a: AttributeError" in format_audit(found)
    assert "LEAK targets" in format_audit(found)


def test_the_last_bit_of_an_answer_is_enough(dataset):
    nudge = lambda batch: by_lidar(batch) * (1 + 2e-7 * (batch.future.position[:, :1, :1] > 0))  # noqa: E731
    (leak,) = audited(nudge, dataset, 4)["leaks"]
    assert "future" in leak
    in_yaw = Planner(by_lidar)
    in_yaw.decode = lambda plan, batch: Predictions(
        batch.tokens,
        plan=Trajectory(plan, batch.future.yaw if batch.future else plan[..., 0], torch.ones(plan.shape[:2]).bool()),
    )
    (leak,) = audit(in_yaw, dataset, 4, 4, CPU)["leaks"]
    assert leak.endswith("changes it: future (its heading alone)"), "the heading is part of a plan"


def test_an_honest_planner_passes_whatever_the_size_of_its_batches(dataset):
    found = audited(by_lidar, dataset)
    assert found["leaks"] == [] and "no leak found" in format_audit(found)
    assert "reacts to its sensors" in found["says"][0] and found["says"][1] == "takes no notice of radar"
    chosen = choose_samples(dataset.scenes, 9, 6)
    ends = [3 * dataset[0, index].lidar[:, :2].double().mean(0) for index in chosen]
    scenes = [dataset.scenes[index] for index in chosen]
    away = []
    for place, scene in enumerate(scenes):
        donor = next(p % 9 for p in range(place + 1, place + 9) if scenes[p % 9] != scene)
        away.append(float((ends[donor] - ends[place]).norm()))
    moved = row(found, "lidar of another scene")["moved"]["3s"]
    assert moved["mean"] == pytest.approx(np.mean(away), rel=1e-5) and moved["low"] < moved["mean"] < moved["high"]
    assert row(found, "no lidar")["moved"]["3s"]["mean"] == pytest.approx(np.mean([float(e.norm()) for e in ends]))
    for size in (1, 3, 9):
        again = audited(by_lidar, dataset, batch_size=size)
        for first, second in zip(found["changes"], again["changes"], strict=True):
            np.testing.assert_allclose(first["most"], second["most"], atol=1e-6)
    assert json.dumps(audited(by_lidar, dataset)) == json.dumps(found)


def test_names_company_and_chance(dataset):
    by_name = lambda batch: by_lidar(batch) + torch.tensor([hash(t) % 7 for t in batch.tokens])[:, None, None]  # noqa: E731
    assert [leak.partition(":")[0] for leak in audited(by_name, dataset, 4)["leaks"]] == ["names"]
    by_scene = lambda batch: by_lidar(batch) + torch.tensor([len(t) for t in batch.scenes])[:, None, None]  # noqa: E731
    assert [leak.partition(":")[0] for leak in audited(by_scene, dataset, 4)["leaks"]] == ["names"]
    together = lambda batch: by_lidar(batch) + by_lidar(batch).mean(0)  # noqa: E731
    (leak,) = audited(together, dataset, 4)["leaks"]
    assert leak.startswith("company: the plan depends on the other samples of its batch (by up to")
    with pytest.raises(Fusion3DError, match=r"asked the same again: .*--deterministic true"):
        audited(lambda batch: torch.rand(len(batch), 6, 2), dataset, 4)
    with pytest.raises(Fusion3DError, match=r"of sample .* has a number that is not finite"):
        audited(lambda batch: nowhere(batch) * torch.nan, dataset, 4)


def test_the_card_says_where_ego_motion_gets_in(dataset, synthetic_root):
    """Older sweeps are moved by measured poses: how far they are from the present ones tells how the vehicle moves."""
    card = audited(by_lidar, dataset, 4)["card"]
    assert card["ego in BEV"] == "places older sweeps of lidar (2 sweeps) and radar (2 sweeps): not tried otherwise"
    for changes, said in (
        ({"lidar_sweeps": 1, "radar_sweeps": 1}, "nothing"),
        ({"sensors": ("lidar",)}, "places older sweeps of lidar (2 sweeps): not tried otherwise"),
    ):
        assert audited(by_lidar, Read(opened(synthetic_root, **changes)), 2)["card"]["ego in BEV"] == said


def test_places_commands_and_nothing_at_all(dataset):
    by_heart = lambda batch: batch.global_from_ego[:, None, :2, 3] * TIME + batch.timestamp[:, None, None] / 1e16  # noqa: E731
    told = audited(by_heart, dataset, 4)
    assert told["leaks"] == [] and any("plans otherwise elsewhere on the map" in text for text in told["says"])
    assert not any("a day later" in text for text in told["says"]), "a micrometre"
    obeys = lambda batch: torch.nn.functional.one_hot(batch.command + 1, 4)[:, None, :2] * TIME  # noqa: E731
    told = audited(obeys, dataset, 4)
    assert "reacts to the command alone" in told["says"][0] and told["card"]["command"].startswith("up to 3.00 m")
    assert ("made of the driven path" in told["card"]["command"]) == ("command" in told["future"]["changed"])
    assert "other motion" not in [row["name"] for row in told["changes"]], "what is not there is not tried"
    assert "plans the same whatever it is given" in audited(nowhere, dataset, 4)["says"][0]
    both = lambda batch: by_lidar(batch) + 0.01 * by_status(batch)  # noqa: E731
    told = audited(both, dataset, 9, declared="measured")["says"][0]
    assert told.startswith("reacts to its sensors") or "more than to the measured motion" in told


def test_one_scene_has_no_intervals_and_nothing_to_exchange(synthetic_root):
    dataset = Read(opened(synthetic_root, "val"))
    found = audited(by_status, dataset, declared="measured")
    assert found["scenes"] == 1 and found["samples"] == 4
    assert not any("another scene" in row["name"] for row in found["changes"])
    assert row(found, "speed x 5")["moved"]["3s"]["low"] is None
    assert found["says"][0].endswith("with one scene things are only taken away, not exchanged")
    assert (
        "an ego-status planner" in found["says"][0]
        and "[" not in format_audit(found).split("company")[1].split("\n")[1]
    )


def test_what_cannot_be_audited(dataset, synthetic_root, tmp_path, capsys):
    with pytest.raises(ConfigError, match="--samples is 0: expected at least 1"):
        audited(by_lidar, dataset, 0)
    no_plan = Planner(by_lidar)
    no_plan.decode = lambda plan, batch: Predictions(batch.tokens)
    with pytest.raises(ConfigError, match="gives no plan"):
        audit(no_plan, dataset, 4, 4, CPU)
    empty = copy.copy(dataset.dataset)
    empty.rows = empty.rows[:0]
    with pytest.raises(DataError, match="split 'all' has no sample"):
        audit(Planner(by_lidar), empty, 4, 4, CPU)
    last = copy.copy(dataset.dataset)
    last.rows = last.rows[5::6]
    with pytest.raises(DataError, match="nothing is driven after any of 3 samples of split 'all'"):
        audit(Planner(by_lidar), last, 4, 4, CPU)
    folder = saved(on_synthetic(synthetic_root, camera=None, planning=None), tmp_path / "step-00000001")
    assert run("audit_planner", [str(folder)]) == 1
    assert "planning is null: this model plans nothing" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["middle", "early", "late"])
def test_the_verb_on_a_model_with_memory(synthetic_root, tmp_path, capsys, stage, monkeypatch):
    """A real model, untrained: its numbers do not depend on whether the encoders run anew, nor on its batches."""
    temporal = {"keyframes": 2} if stage != "early" else None
    config = on_synthetic(synthetic_root, camera=None, map=None, detection=None, temporal=temporal, fusion__stage=stage,
                          planning__ego_status="measured", train__batch_size=2)  # fmt: skip
    folder = saved(config, tmp_path / "checkpoints" / "step-00000001")
    arguments = [str(folder), "--samples", "3", "--data.split", "all", "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    text, found = capsys.readouterr().out, json.loads((tmp_path / FILE).read_text())
    assert found["leaks"] == [] and found["ego_status"] == "measured" and "no leak found" in text
    assert all(row["refused"] is None for row in found["changes"])
    assert row(found, "speed x 5")["most"] > 0 and row(found, "no lidar")["most"] > 0
    assert ("no history" in [row["name"] for row in found["changes"]]) == (temporal is not None)
    if temporal is not None:
        assert row(found, "history of another scene")["most"] > 0 and row(found, "way since then x 5")["most"] > 0
        assert "elsewhere on the map" in text and row(found, "elsewhere on the map")["most"] < 1e-3
    for name in ("other boxes", "other future", "no targets", "other names", "a day later", "no past"):
        assert row(found, name)["different"] == 0, name
    if stage != "middle":
        return
    asked = []
    monkeypatch.setattr(audit_run, "_sense", lambda *_: asked.append(1))
    anew = audit_planner(folder, dataclasses.replace(config, data=dataclasses.replace(config.data, split="all")), 3)
    assert asked and [row["name"] for row in anew["changes"]] == [row["name"] for row in found["changes"]]
    for first, second in zip(anew["changes"], found["changes"], strict=True):
        assert first["different"] == second["different"]
        np.testing.assert_allclose(first["most"], second["most"], atol=1e-6)


def test_encoders_that_look_at_more_than_their_sensors_run_every_time(synthetic_root):
    """What the first batch is sensed as must not be kept where it depends on what is changed."""
    dataset = Read(opened(synthetic_root))

    class Hidden(Planner):
        separable = True

        def sense(self, batch):
            return self.says(batch).float()

        def conclude(self, sensed, batch):
            return sensed

    honest, hidden = Hidden(by_lidar), Hidden(lambda batch: by_lidar(batch) + by_status(batch))
    calls: list[int] = []
    honest.says = lambda batch: (calls.append(1), by_lidar(batch))[1]
    assert audit(honest, dataset, 4, 4, CPU)["leaks"] == []
    assert len(calls) < 20, "the encoders run for changes of sensors alone"
    assert "ego status" in audit(hidden, dataset, 4, 4, CPU)["leaks"][0]


class FromTheNextPose(NuScenesDataset):
    """Where VAD's converter takes the speed from at the start of a scene: the pose that follows."""

    def __getitem__(self, key):
        sample = super().__getitem__(key)
        following = load_ego(self.tables, int(self.rows[key[1]]), 6)[0]
        return dataclasses.replace(
            sample, status=dataclasses.replace(sample.status, velocity=2 * following.position[0])
        )


def test_data_sets_that_look_ahead_are_caught(synthetic_root, monkeypatch):
    dataset = Read(opened(synthetic_root, kind=FromTheNextPose))
    check = check_future(dataset.dataset, range(0, 18, 3))
    assert check.changed["status"] == check.samples > 0
    leaks = audited(by_lidar, dataset, 4)["leaks"]
    assert len(leaks) == 1 and leaks[0].startswith("future: inputs change with what comes after: status in ")
    plain, real = opened(synthetic_root), Corruptor.readings

    def ahead(self, tables, sample, channel, count=1):
        found, following = real(self, tables, sample, channel, count), int(tables.sample_next[sample])
        later = -1 if following < 0 else tables.key(following, channel)
        return found if later < 0 else [dataclasses.replace(found[0], content=later), *found[1:]]

    monkeypatch.setattr(Corruptor, "readings", ahead)
    check = check_future(plain, [0, 1])
    assert check.changed["lidar"] == 2 and check.newest > 0.3 and len(check.ahead) == 2 * (1 + 5)
