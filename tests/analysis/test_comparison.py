"""The comparison of ways to fuse: its rows, its statistics, what it refuses, its processes, and a small one whole."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import yaml

from fusion3d.analysis.comparison import costs, jobs, main, page, runs, summary
from fusion3d.analysis.comparison.rows import (
    BEST,
    OPERATORS,
    STAGES,
    TOGETHER,
    WITH_OPERATOR,
    Row,
    alone,
    best_rows,
)
from fusion3d.build import build_model
from fusion3d.config import Config, DataConfig, DetectionConfig, FusionConfig, PasteConfig, load_config
from fusion3d.engine.checkpoint import Position, checkpoint_folder, save_checkpoint
from fusion3d.errors import CheckpointError, ConfigError, DataError, Fusion3DError
from fusion3d.files import write_json
from fusion3d.types import SENSORS

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import stand_in
from tiny import fork

ROOT = Path(__file__).parents[2]
BUDGET = runs.Budget((20, 8, 8), 3, 2, 1e-3)
SUBSETS = ("camera", "lidar", "radar", "camera+lidar", "camera+radar", "lidar+radar", "camera+lidar+radar")


# -- rows


def test_every_operator_and_stage_of_the_configuration_has_a_row():
    hints = get_type_hints(FusionConfig)
    assert [row.operator for row in OPERATORS] == list(get_args(hints["operator"]))
    assert {row.stage for row in (*STAGES, *WITH_OPERATOR)} | {"middle"} == set(get_args(hints["stage"]))
    names = [row.name for row in (*alone(SENSORS), *OPERATORS, *STAGES, *WITH_OPERATOR)]
    assert len(set(names)) == len(names)


def test_each_row_builds_and_says_what_it_is():
    base = load_config(ROOT / "configs" / "demo.yaml", ["--train.subsets", "3"])
    chosen = best_rows({row.name: 0.0 for row in OPERATORS})
    singles = tuple(f"out/{name}/seed-3" for name in ("radar", "lidar", "camera"))
    for row in (*alone(SENSORS), TOGETHER, *OPERATORS, *STAGES, *chosen):
        run = runs.make_run(base, row, 3, BUDGET, Path("out"))
        runs.check(run)
        assert run.seed == run.config.seed == 3 and str(run) == f"{row.name} seed 3"
        if not row.alone:
            assert (run.config.fusion.stage, run.config.fusion.operator) == (row.stage, row.operator)
            before = () if row == TOGETHER else ("out/together/seed-3",)
            early = row.stage == "early"  # its encoder of points begins anew, and learns as long as the others' did
            assert run.config.train.start == (*before, *(() if early else singles))
            epochs = 8 + 3 + 2 if early else 3 if row == TOGETHER else 2
            assert (run.config.train.epochs, run.config.train.learning_rate) == (epochs, 1e-3)
            names = build_model(run.config, pretrained=False).state_dict()
            assert all(any(name.startswith(f"{part}.") for name in names) for part in run.config.train.fresh)
            assert bool(run.config.train.fresh) == (row != TOGETHER and row.stage != "late")
        else:
            assert run.config.branches == row.alone and run.config.train.start == ()
            assert run.config.train.subsets == 1  # a single kind has no other: the same run whatever the rows do
            assert run.config.train.learning_rate == base.train.learning_rate
            assert run.config.train.epochs == {"camera": 20, "lidar": 8, "radar": 8}[row.name]


def test_the_best_operators_get_the_other_stages():
    score = {row.name: 0.1 for row in OPERATORS} | {"gated": 0.9, "tensor": 0.8}
    chosen = [(row.stage, row.operator) for row in best_rows(score)]
    assert chosen == [("hierarchical", "gated"), ("hierarchical", "tensor"), ("hybrid", "gated")]
    assert {"hierarchical": 2, "hybrid": 1} == BEST


def test_a_row_that_cannot_be_is_named_before_anything_is_trained(tmp_path):
    base = dataclasses.replace(Config(), fusion=dataclasses.replace(FusionConfig(), channels=30))
    comparison = main.Comparison(base, BUDGET, (0,), tmp_path)
    with pytest.raises(ConfigError, match=r"row cross_attention: fusion\.channels"):
        main.compare(comparison, 1)
    assert not any(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"unknown row 'gatd'; did you mean 'gated'"):
        dataclasses.replace(comparison, only=("gatd",)).first_rows()


# -- statistics


def test_the_interval_is_students():
    found = summary.estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t(0.975, 2), sd 1
    assert not found.distinguishable and summary.estimate([1.0, 1.1, 0.9]).distinguishable
    one = summary.estimate([0.5])
    assert one.half is None and not one.distinguishable and str(one) == "0.500"
    with pytest.raises(ValueError, match="at least one"):
        summary.estimate([])


def test_the_interval_covers_as_often_as_it_says():
    draw = np.random.default_rng(0)
    found = [summary.estimate(list(draw.normal(0.3, 1.0, 3))) for _ in range(2000)]
    covered = np.mean([abs(one.mean - 0.3) <= (one.half or 0.0) for one in found])
    assert covered == pytest.approx(0.95, abs=0.015)


def metrics(scores: dict[str, float], speed: dict[str, float] | None = None) -> dict:
    names = ("mAP", "mATE", "mASE", "mAOE", "mAAE")
    subsets = {
        name: {"NDS": scores.get(name, 0.1), "mAVE": (speed or {}).get(name, 0.5)} | dict.fromkeys(names, 0.2)
        for name in SUBSETS
    }
    return {"subsets": subsets, "num_samples": 48}


def runs_of(lead: float, noise: float = 0.01) -> dict[str, dict[int, dict]]:
    """Three rows of seeds: all sensors ``lead`` above lidar+radar, which is above the other pairs."""
    draw = np.random.default_rng(1)
    table: dict[str, dict[int, dict]] = {}
    for row, level in (("concat", 0.5), ("gated", 0.6), ("late", 0.4)):
        table[row] = {}
        for seed in range(3):
            base = level + 0.05 * seed
            scores = {"camera": 0.2, "lidar": base - 0.2, "radar": base - 0.1, "lidar+radar": base}
            scores |= {"camera+lidar": base - 0.15, "camera+radar": base - 0.1}
            scores["camera+lidar+radar"] = base + lead + noise * float(draw.normal())
            speed = {"camera+radar": 0.4, "camera": 1.0, "lidar": 0.8, "lidar+radar": 0.5, "camera+lidar": 0.7}
            table[row][seed] = metrics(scores, speed | {"camera+lidar+radar": 0.5})
    return table


def test_what_sensors_add_is_paired_and_rows_count_once():
    found = summary.gains(runs_of(0.05, noise=0.0))
    by_name = {(gain.metric, gain.less, gain.more): gain for gain in found}
    pair = by_name["NDS", "lidar+radar", "camera+lidar+radar"]
    assert pair.rows.count == pair.seeds.count == 3 and pair.mean == pytest.approx(0.05)  # 9 runs of 3 rows, 3 seeds
    assert pair.rows.half == pytest.approx(0.0, abs=1e-9)  # levels and seeds differ, the pairs do not
    assert by_name["mAVE (lower by)", "camera", "camera+radar"].mean == pytest.approx(0.6)
    assert by_name["mAVE (lower by)", "lidar", "lidar+radar"].mean == pytest.approx(0.3)
    assert sum(gain.metric != "NDS" for gain in found) == 3 and sum(gain.metric == "NDS" for gain in found) == 6
    assert summary.best(found, 2).less == "lidar+radar" and summary.best(found, 1).less == "radar"
    # Twice the seeds of the same row are no more evidence over rows than once.
    again = {row: {**of, **{seed + 3: m for seed, m in of.items()}} for row, of in runs_of(0.05, 0.05).items()}
    twice, once = (summary.best(summary.gains(scores), 2).rows for scores in (again, runs_of(0.05, 0.05)))
    assert twice.half == pytest.approx(once.half)


def test_a_row_that_lacks_seeds_makes_no_difference_between_them():
    alike = {row: dict.fromkeys(range(3), 1.0) for row in ("add", "concat")}
    found = summary.gain(alike | {"early": {0: -5.0}}, "NDS", "all", "few")
    assert (found.seeds.mean, found.seeds.half, found.seeds.count) == (1.0, 0.0, 3)
    assert found.mean == pytest.approx(-1.0) and found.rows.count == 3  # as a row it counts
    assert str(found).endswith("(2 of 3 above 0), +1.000 ± 0.000 over seeds: not distinguishable")
    uneven = summary.gain({"add": {0: 1.0}, "concat": {1: 3.0}}, "NDS", "all", "few")  # none has every seed
    assert (uneven.seeds.mean, uneven.seeds.count) == (2.0, 2)


def test_rows_and_seeds_must_both_part_it_from_zero():
    def number(row: int, seed: int) -> dict[str, dict[int, float]]:
        return {str(i): {j: row * i + seed * j + 1.0 for j in range(3)} for i in range(3)}

    def gain_of(numbers: dict) -> summary.Gain:
        return summary.gain(numbers, "NDS", "all", "few")

    steady = gain_of(number(0, 0))
    assert steady.distinguishable and steady.mean == 1.0
    for rows, seeds in ((4, 0), (0, 4)):
        found = gain_of(number(rows, seeds))
        assert not found.distinguishable and found.rows.distinguishable == (rows == 0)
        assert found.seeds.distinguishable == (seeds == 0)
        middle = 1.0 + rows + seeds
        expected = 4.302653 * 4 / math.sqrt(3)
        assert found.mean == middle and max(found.rows.half, found.seeds.half) == pytest.approx(expected, rel=1e-6)
    assert not gain_of({"a": {0: 1.0}, "b": {0: 1.0}}).distinguishable  # one seed does not say how seeds differ


def test_no_lead_is_called_not_distinguishable():
    assert "not distinguishable" in str(summary.best(summary.gains(runs_of(0.0, 0.05)), 2))
    lead = str(summary.best(summary.gains(runs_of(0.1, 0.01)), 2))
    assert "not distinguishable" not in lead and "against lidar+radar: +0." in lead


# -- the page


def test_the_page_says_the_numbers(tmp_path):
    joint = runs_of(0.05)
    del joint["late"][2]
    single = {"lidar": {0: {"subsets": {"lidar": metrics({"lidar": 0.3})["subsets"]["lidar"]}, "num_samples": 48}}}
    cost = {"gated": {"parameters": 1234567, "gflops": 5.5, "milliseconds": 77.7}}
    text = page.write_page(
        tmp_path / "fusion", single, joint, cost, {"about": "here", "protocol": "so", "commands": ["do it"]}
    )
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    rows = {cells[0]: cells for cells in table}
    assert len({len(cells) for cells in table}) == 1
    heads = rows["row"]
    gated = dict(zip(heads, rows["gated"], strict=True))
    expected = summary.estimate([summary.nds(m) for m in joint["gated"].values()])
    assert gated["NDS, C+L+R"] == f"{expected.mean:.3f} ± {expected.half:.3f}" and gated["seeds"] == "3"
    assert (gated["parameters"], gated["GFLOPs"], gated["ms"]) == ("1,234,567", "5.50", "78")
    assert gated["L+R"] == "0.650" and gated["to concat"].startswith("+0.")
    assert dict(zip(heads, rows["late"], strict=True))["seeds"] == "2" and rows["late"][-1] == "-"
    lidar = dict(zip(heads, rows["lidar"], strict=True))
    assert (lidar["L"], lidar["C"], lidar["NDS, C+L+R"], lidar["seeds"]) == ("0.300", "-", "-", "1")
    assert "best pair" in text and "best single sensor" in text
    lead = np.mean([summary.nds(joint[row][0]) for row in joint]) - 0.3  # of the one seed that both have
    assert f"against the model of lidar alone: {lead:+.3f}" in text
    plot = (tmp_path / "fusion.svg").read_bytes()
    assert ElementTree.fromstring(plot).tag.endswith("svg") and len(plot) < 200_000
    values = json.loads((tmp_path / "fusion.json").read_text())
    assert values["rows"]["gated"]["seeds"]["1"]["lidar+radar"]["NDS"] == pytest.approx(0.65)
    page.write_page(
        tmp_path / "fusion", single, joint, cost, {"about": "here", "protocol": "so", "commands": ["do it"]}
    )
    assert (tmp_path / "fusion.svg").read_bytes() == plot


def test_without_boxes_there_is_nothing_to_compare():
    base = dataclasses.replace(load_config(ROOT / "configs" / "demo.yaml"), detection=None)
    with pytest.raises(ConfigError, match="detection: found null; models are compared by their NDS"):
        runs.check(runs.make_run(base, OPERATORS[0], 0, BUDGET, Path("out")))


def test_single_sensors_have_nothing_to_agree_with():
    base = load_config(ROOT / "configs" / "demo.yaml", ["--fusion.stage", "hybrid", "--fusion.align", "deformable"])
    for row in alone(SENSORS):
        runs.check(runs.make_run(base, row, 0, BUDGET, Path("out")))


# -- what lies in a folder


@pytest.fixture
def run(tmp_path) -> runs.Run:
    """A run that begins with a checkpoint of another, on a data set of two files."""
    version = tmp_path / "data" / "v1.0-trainval"
    version.mkdir(parents=True)
    (version / "sample.json").write_text("[1]")
    start = save_checkpoint(checkpoint_folder(tmp_path / "lidar", 1), Config(), {}, Position())
    config = Config(data=DataConfig(root=str(tmp_path / "data")))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, start=(str(start),)))
    return runs.Run(Row("concat"), 0, config, tmp_path / "concat" / "seed-0")


def with_train(run: runs.Run, **changes) -> runs.Run:
    config = dataclasses.replace(run.config, train=dataclasses.replace(run.config.train, **changes))
    return dataclasses.replace(run, config=config)


def test_another_run_in_the_folder_is_refused(run, tmp_path):
    runs.claim(run)
    runs.claim(with_train(run, log_every=3))  # changes no number
    looser = dataclasses.replace(run.config, detection=DetectionConfig(score_threshold=0.1))
    with pytest.raises(CheckpointError, match=r"detection\.score_threshold: 0\.02 there, 0\.1 here"):
        runs.claim(dataclasses.replace(run, config=looser))  # the same weights, but other numbers
    with pytest.raises(CheckpointError, match=r"train\.epochs: 20 there, 7 here.*take another --out"):
        runs.claim(with_train(run, epochs=7))
    moved = tmp_path / "elsewhere"
    (tmp_path / "lidar").rename(moved)
    runs.claim(with_train(run, start=(str(moved),)))  # the same weights, elsewhere
    for file in moved.rglob("model.safetensors"):
        file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match="other weights to begin with"):
        runs.claim(with_train(run, start=(str(moved),)))
    Path(run.config.data.root, run.config.data.version, "sample.json").write_text("[2]")
    with pytest.raises(CheckpointError, match="other data"):
        runs.claim(with_train(run, start=(str(moved),)))


def test_a_training_without_a_record_is_taken_over_if_it_is_the_same(run):
    save_checkpoint(checkpoint_folder(run.folder, 1), run.config, {}, Position())
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        runs.claim(with_train(run, epochs=7))
    assert runs.unfinished([run]) == [run]
    write_json(run.folder / runs.METRICS, {})
    assert runs.unfinished([run]) == [] and (run.folder / runs.RECORD).is_file()


# -- processes


def test_runs_go_on_beside_those_that_fail_and_two_processes_do_not_work_in_one_folder(run, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    several = [dataclasses.replace(run, seed=seed, folder=tmp_path / f"seed-{seed}") for seed in (0, 1, 3)]
    said: list[str] = []
    several[2].folder.mkdir(parents=True)
    failed = (
        "2 of 3 runs failed: ",
        "concat seed 1: this one was not to be",
        "concat seed 3: another process works in",
    )
    with open(several[2].folder / jobs.LOCK, "w") as lock, pytest.raises(Fusion3DError) as error:
        fcntl.flock(lock, fcntl.LOCK_EX)
        jobs.run_all(several, 3, said.append, stand_in.work, patience=1000)
    assert all(part in str(error.value) for part in failed)
    assert [one.finished for one in several] == [True, False, False]
    told = [(one.folder / jobs.LOG).read_text() for one in several[:2]]
    assert all("threads 1" in text and f"process {os.getpid()}" not in text for text in told)
    assert said[-1].startswith("[3/3") and len(said) <= 3, "a line for every end, and none while a process is ending"
    assert "OMP_NUM_THREADS" not in os.environ


def test_runs_end_with_the_comparison_that_is_killed(run, tmp_path):
    """Seed 2 sleeps for a minute; who started it is killed meanwhile."""
    slow = dataclasses.replace(run, seed=2)
    parent = fork(tmp_path / "told.txt", {"OMP_NUM_THREADS": "1"}, jobs.run_all, [slow], 1, print, stand_in.work)
    output, patience = run.folder / jobs.LOG, time.monotonic() + 60
    while "process" not in jobs.last_line(output) and time.monotonic() < patience:
        time.sleep(0.05)
    child = int(jobs.last_line(output).split()[-1])
    os.kill(child, 0)  # it is there
    parent.kill()
    parent.join()
    with open(run.folder / jobs.LOCK, "w") as lock:
        while time.monotonic() < patience:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(0.05)
        else:
            pytest.fail("the run works on without the comparison")
    assert not slow.finished


# -- a small one, whole


@pytest.fixture(scope="module")
def small_config(synthetic_root, tmp_path_factory) -> Path:
    values = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    values["data"] |= {"root": str(synthetic_root), "image_size": [64, 96], "workers": 0}
    values["data"] |= {"train_split": "synthetic_train", "split": "synthetic_val"}
    values["grid"]["resolution"], values["lidar"] = 3.2, {"channels": 8, "pillar": 1.6}
    values["camera"], values["trunk"] = None, {"channels": 8, "blocks": [1], "out_channels": 8}
    path = tmp_path_factory.mktemp("small") / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def compare(config: Path, out: Path, *more: str) -> int:
    options = ["--out", str(out / "runs"), "--page", str(out / "fusion"), "--alone-epochs", "1", "1"]
    options += ["--together-epochs", "1", "--epochs", "1"]
    return main.main([str(config), *options, *more])


@pytest.fixture
def invented(monkeypatch) -> list[str]:
    """The names of runs as they are done; they are not trained, and their numbers are invented."""
    done: list[str] = []

    def invent(several, jobs_at_once, say):
        for one in several:
            done.append(str(one))
            save_checkpoint(checkpoint_folder(one.folder, 1), one.config, {}, Position())
            level = {"add": 0.6, "gated": 0.5, "concat": 0.4}.get(one.row.operator, 0.1) + 0.01 * one.seed
            subsets = {name: row for name, row in metrics({}).items() if name != "camera"}["subsets"]
            names = list(one.row.alone) if one.row.alone else ["lidar", "radar", "lidar+radar"]
            numbers = {name: subsets[name] | {"NDS": level + 0.1 * name.count("+")} for name in names}
            write_json(one.folder / runs.METRICS, {"subsets": numbers, "num_samples": 6})

    def cost(several, device, say):
        done.append(f"cost of {len(several)} rows")
        return {one.row.name: {"parameters": 10, "gflops": 1.0, "milliseconds": 5.0} for one in several}

    monkeypatch.setattr(main, "run_all", invent)
    monkeypatch.setattr(main.costs, "measure", cost)
    return done


def test_the_order_of_work_and_what_is_kept(small_config, tmp_path, invented, capsys):
    """Who is trained when, and what a second call does."""
    with pytest.raises(Fusion3DError, match="no row is finished"):
        compare(small_config, tmp_path, "--report")
    assert compare(small_config, tmp_path, "--seeds", "0", "1") == 0
    count = len(OPERATORS) + len(STAGES)
    done, cost = invented[:-1], invented[-1]
    assert cost == f"cost of {2 + count + 3} rows"
    before = [f"{name} seed {seed}" for seed in (0, 1) for name in ("lidar", "radar")]
    assert done[:7] == [*before, "together seed 0", "together seed 1", f"{OPERATORS[0].name} seed 0"]
    assert done[6 + count] == f"{OPERATORS[0].name} seed 1" and len(done) == 6 + 2 * count + 2 * 3
    assert {name.split()[0] for name in done[6 + 2 * count :]} == {
        "hierarchical-add", "hierarchical-gated", "hybrid-add"
    }  # fmt: skip
    out = capsys.readouterr().out
    assert "[1/5]" in out and "[5/5]" in out and "best pair" not in out and "best single sensor" in out
    text = (tmp_path / "fusion.md").read_text()
    assert text in out and str(tmp_path) not in text + (tmp_path / "fusion.json").read_text()
    assert text.count("\n| ") == 2 + 2 + count + 3
    invented.clear()
    assert compare(small_config, tmp_path, "--seeds", "0", "1") == 0
    assert invented == []  # what is known is not measured again
    assert compare(small_config, tmp_path, "--seeds", "2", "2", "--only", "hybrid-tensor", "late") == 0
    assert invented[3:] == ["late seed 2", "hybrid-tensor seed 2", f"cost of {2 + count + 3 + 1} rows"]
    with pytest.raises(CheckpointError, match=r"detection\.velocity_weight: 1\.0 there, 0\.5 here"):
        compare(small_config, tmp_path, "--report", "--seeds", "0", "--detection.velocity_weight", "0.5")


def test_runs_of_other_pages_stand_on_the_page(small_config, tmp_path, invented):
    """Two seeds in one place are the same page as each in a place of its own; what is not the same is refused."""
    assert compare(small_config, tmp_path / "both", "--seeds", "0", "1") == 0
    assert compare(small_config, tmp_path / "first", "--seeds", "0") == 0
    invented.clear()
    first = tmp_path / "first" / "fusion.json"
    assert compare(small_config, tmp_path / "second", "--seeds", "1", "--with", str(first)) == 0
    assert {name.split()[-1] for name in invented[:-1]} == {"1"}
    pages = [tmp_path / name / "fusion.md" for name in ("both", "second")]
    assert pages[0].read_text() == pages[1].read_text() and "Seeds 0, 1; same data" in pages[0].read_text()
    assert "operators that were best with seed 0." in pages[1].read_text()
    page = json.loads(first.read_text())
    for key, value in (("budget", {}), ("data", "0"), ("config", "0")):
        other = write_json(tmp_path / "other.json", page | {key: value})
        with pytest.raises(DataError, match=rf"another comparison: its {key} differ"):
            compare(small_config, tmp_path / "second", "--report", "--seeds", "1", "--with", str(other))
    few = {"seeds": {"0": {"lidar+radar": {"NDS": 0.5}}}}
    for damage in ({"rows": {"gated": {}}}, {"rows": {"gated": {"seeds": {"0": {}}}}}, {"rows": {"gated": few}}):
        other = write_json(tmp_path / "other.json", page | damage)
        with pytest.raises(DataError, match=r"--with takes the \.json file of a page"):
            compare(small_config, tmp_path / "second", "--report", "--seeds", "1", "--with", str(other))
    write_json(other, page | {"environments": [{}]})
    with pytest.raises(DataError, match=r"--with takes the \.json file of a page"):
        compare(small_config, tmp_path / "second", "--report", "--seeds", "1", "--with", str(other))
    for seeds, pages in ((("0", "1"), [first]), (("1",), [first, first])):
        with pytest.raises(DataError, match=r"has seed 0, and so has (--seeds|.*first/fusion\.json); each seed"):
            compare(small_config, tmp_path / "second", "--report", "--seeds", *seeds, "--with", *map(str, pages))


def test_whatever_makes_other_numbers_makes_another_digest():
    base = load_config(ROOT / "configs" / "demo.yaml")
    moved = dataclasses.replace(base, data=dataclasses.replace(base.data, root="elsewhere", workers=7))
    assert runs.config_digest(moved) == runs.config_digest(base)
    assert runs.config_digest(dataclasses.replace(base, seed=1)) != runs.config_digest(base)
    pasted, other = (
        dataclasses.replace(base, augment=dataclasses.replace(base.augment, paste=PasteConfig(database=name)))
        for name in ("objects", "others")
    )
    assert runs.config_digest(pasted) == runs.config_digest(other) != runs.config_digest(base)


@pytest.mark.slow
def test_a_small_comparison_in_processes(small_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(costs, "REPEATS", 1)
    options = ("--seeds", "0", "--only", "concat", "--jobs", "2")
    assert compare(small_config, tmp_path, *options) == 0
    told = (tmp_path / "runs" / "concat" / "seed-0" / jobs.LOG).read_text()
    assert "start: 5 are new: fuse 5" in told and "6/6 samples x 3 subsets" in told
    numbers = json.loads((tmp_path / "fusion.json").read_text())["rows"]
    assert set(numbers) == {"lidar", "radar", "concat"}
    assert set(numbers["concat"]["seeds"]["0"]) == {"lidar", "radar", "lidar+radar"}
    assert numbers["concat"]["cost"]["parameters"] > numbers["lidar"]["cost"]["parameters"] > 0
    assert numbers["concat"]["cost"]["milliseconds"] > 0 and numbers["concat"]["cost"]["gflops"] > 0
    capsys.readouterr()
    assert compare(small_config, tmp_path, *options) == 0
    assert capsys.readouterr().out.count(" 0 runs to do") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1"], "expected the configuration file first"),
        (["configs/demo.yaml", "--alone-epochs", "3"], "--alone-epochs: expected one for each of"),
        (["configs/demo.yaml", "--jobs", "0"], "expected at least 1"),
        (["configs/demo.yaml", "--seeds", "-1"], "seed: expected 0 or more, found -1"),
        (["configs/demo.yaml", "--rate", "0"], "learning_rate: expected"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        main.main([*arguments, "--out", str(tmp_path)])
