"""The report: well-formed, self-contained, escaped, and with the numbers in their places."""

import itertools
import math
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from fusion3d.errors import Fusion3DError
from fusion3d.metrics.occupancy import LAYERS
from fusion3d.types import DETECTION_CLASSES, MAP_CLASSES
from fusion3d.view.charts import line_chart, round_ticks, running_mean
from fusion3d.view.report import write_report
from fusion3d.view.sections import Findings, WorstSample, robustness

SUBSETS = ("camera", "lidar", "radar", "camera+lidar", "camera+radar", "lidar+radar", "camera+lidar+radar")
DASH = "\N{EN DASH}"
VOID = {"meta", "img", "br", "line"}  # <line/> closes itself


class Page(HTMLParser):
    """Checks that tags nest, and collects text, attributes and the cells of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[tuple[str, str]]] = []  # (class, text) of every cell
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append((dict(attrs).get("class", ""), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data
        if "td" in self.open or "th" in self.open:
            kind, text = self.rows[-1][-1]
            self.rows[-1][-1] = (kind, text + data)

    def row(self, name: str, nth: int = 0) -> list[tuple[str, str]]:
        return [row for row in self.rows if row and row[0][1] == name][nth]


def numbers() -> dict:
    columns = ("NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
    rows = {
        name: {c: 0.1 * (i + 1) + 0.01 * j for j, c in enumerate(columns)}
        | {"AP": {c: 0.05 * (i + k % 3) for k, c in enumerate(DETECTION_CLASSES)}}
        for i, name in enumerate(SUBSETS)
    }
    plans = {
        name: {f"L2@{t}s": t * far for t in (1, 2, 3)} | {f"collision@{t}s": 0.0123 * t * far for t in (1, 2, 3)}
        for name, far in (("model", 0.4), ("constant_velocity", 0.6), ("stationary", 3.0), ("human", 0.0))
    }
    return {
        "subsets": rows,
        "planning": plans,
        "seconds": {"train": 321.4, "total": 3725.0},
        "protocol": "L2 at t, 1 < 2 & exact",
        "num_samples": 32,
    }


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "one.png"
    Image.new("RGB", (4, 3), "red").save(path)
    return path


def page_of(path, **options) -> tuple[str, Page]:
    html = write_report(path / "report.html", **options).read_text()
    return html, Page(html)


def test_every_number_stands_in_its_row(tmp_path, picture):
    curves = [{"step": i, "loss": 5.0 - i / 10, "loss/heatmap": 2.0, "lr": 1.0} for i in range(40)]
    _, page = page_of(
        tmp_path, metrics=numbers(), curves=curves, pictures=[("first <scene>", picture)],
        config_text="train.epochs: 3", environment={"torch": "2.13"}, title="A & B", summary="one < two",
    )  # fmt: skip
    metrics = numbers()
    for name in SUBSETS:
        shown = [text.removesuffix(" best") for _, text in page.row(name.replace("+", " + "))]
        assert shown[1:] == [f"{metrics['subsets'][name][c]:.3f}" for c in list(metrics["subsets"][name])[:7]]
        heat = [text for _, text in page.row(name.replace("+", " + "), 1)]
        assert heat[1:] == [f"{v:.3f}" for v in metrics["subsets"][name]["AP"].values()]
    assert [text for _, text in page.row("model")][1:4] == ["0.400", "0.800", "1.200"]
    assert [text for _, text in page.row("model")][4] == "0.49"  # a rate of 0.00492 in per cent
    for said in ("A & B", "one < two", "1 < 2 & exact", "first <scene>", "train.epochs: 3", "2.13", "1 h 02 min"):
        assert said in page.text
    assert "5 → 1.1" in page.text and "heatmap" in page.text
    assert "+0.400" in page.text  # NDS 0.7 of all over 0.3 of radar, the best single one


def test_the_best_of_each_column_is_marked_in_its_direction(tmp_path):
    _, page = page_of(tmp_path, metrics=numbers())
    marked = {
        name: [i for i, (kind, _) in enumerate(page.row(name.replace("+", " + "))) if kind == "best"]
        for name in SUBSETS
    }
    assert marked["camera+lidar+radar"] == [1, 2]  # scores: most
    assert marked["camera"] == [3, 4, 5, 6, 7]  # errors: least
    assert sum(map(len, marked.values())) == 7
    assert all(kind != "best" for kind, _ in page.row("human"))  # the yardstick does not compete


def test_nothing_is_fetched_or_run(tmp_path, picture):
    html, page = page_of(tmp_path, metrics=numbers(), pictures=[("p", picture)], curves=[{"step": 0, "loss": 1.0}])
    tags = {tag for tag, _, _ in page.attributes}
    assert not tags & {"script", "link", "iframe", "object", "embed"} and "<script" not in html
    for _tag, name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:image/png;base64,", "#"))
        assert not name.startswith("on")
    assert not re.search(r"https?:|@import|url\(", html)


def test_values_are_escaped(tmp_path, picture):
    evil = '"><script>alert(1)</script>'
    metrics = numbers()
    metrics["subsets"][evil] = metrics["subsets"]["camera"]
    metrics["subsets"]["camera"]["AP"][evil] = 0.5
    metrics["planning"][evil] = metrics["planning"]["model"]
    metrics["seconds"][evil] = 1.0
    metrics["protocol"] = metrics["num_samples"] = evil
    html, page = page_of(
        tmp_path, metrics=metrics, curves=[{"step": 1, f"loss/{evil}": 1.0}], pictures=[(evil, picture)],
        config_text=evil, environment={evil: evil}, title=evil, summary=evil,
    )  # fmt: skip
    assert "<script" not in html
    assert page.text.count("alert(1)") >= 9
    assert ("img", "alt", evil) in page.attributes


def test_what_is_absent_leaves_no_empty_section(tmp_path):
    _, page = page_of(tmp_path, metrics={})
    assert "h2" not in {tag for tag, _, _ in page.attributes} and page.rows == []
    metrics = {"subsets": {"lidar": {"NDS": 0.5, "mAP": math.nan}}, "planning": {"model": {"L2@1s": None}}}
    _, page = page_of(tmp_path, metrics=metrics)
    assert [text for _, text in page.row("lidar")][1:4] == ["0.500", DASH, DASH]
    assert {text for _, text in page.row("model")[1:]} == {DASH}


def test_a_missing_picture_is_named(tmp_path):
    with pytest.raises(Fusion3DError, match=r"nowhere\.png"):
        write_report(tmp_path / "r.html", {}, pictures=[("x", tmp_path / "nowhere.png")])
    with pytest.raises(Fusion3DError, match=r"\.png, \.jpg"):
        write_report(tmp_path / "r.html", {}, pictures=[("x", tmp_path / "film.gif")])
    assert not (tmp_path / "r.html").exists()


def test_running_mean_against_its_definition():
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0]
    expected = [sum(v) / len(v) for i in range(6) if (v := values[max(0, i - 2) : i + 3])]
    assert running_mean(values, 2) == pytest.approx(expected)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7.3), (-2.2, 0.4), (0, 1e-4), (3, 3), (0, 0), (0, 123456)])
def test_ticks_are_round_and_enclose(low, high):
    ticks = round_ticks(low, high)
    assert 2 <= len(ticks) <= 7 and ticks[0] <= low and ticks[-1] >= high
    steps = {round(b - a, 9) for a, b in itertools.pairwise(ticks)}
    assert len(steps) == 1 and f"{steps.pop():e}"[0] in "125"


def test_a_curve_goes_down_the_page_as_the_loss_falls():
    svg = line_chart(range(1000), [10 - i / 100 for i in range(1000)], "loss")
    points = re.search(r'class="line" points="([^"]*)"', svg).group(1).split()
    y = [float(p.split(",")[1]) for p in points]
    assert len(points) <= 302 and y == sorted(y) and y[-1] > y[0] + 100
    assert "no values" in line_chart([0], [math.nan], "loss")


def test_tracks_and_all_that_is_known_of_plans(tmp_path):
    metrics = numbers()
    for i, row in enumerate(metrics["subsets"].values()):
        row["tracking"] = {
            "AMOTA": 0.1 * i,
            "AMOTP": 1.5 - 0.1 * i,
            "MOTA": 0.2,
            "MOTP": 0.3,
            "recall": 0.4,
            "IDS": 12.0,
        }
        row["planning"] = {"L2@3s": 1.0 + 0.1 * i, "collision@3s": 0.01, "at_fault@3s": 0.02, "N": 27.0, "events": 3.0}
    nan = math.nan
    last = list(metrics["subsets"])[-1]
    counts = {"N": 275.0, "events": 9.0, "masked": 2.0}
    metrics["planning_scores"] = {
        "protocols": {
            name: {
                "planners": {
                    last: {f"{what}@{t}s": value for what in ("L2", "collision") for t in (1, 2, 3)} | counts,
                    "human": {floor: 0.0125},
                },
                "samples": "57cfe4ae",
                "about": {"ego": "4.084 x 1.85 m, centre +0.50 m of the LiDAR, never turned"},
            }
            for name, value, floor in (("exact", 0.25, "collision@3s"), ("uniad_valid", 0.75, "raw@3s"))
        },
        "pdm": {
            "lidar": {
                "PDMS": 0.81,
                "NC": 0.9,
                "DAC": nan,
                "TTC": 0.7,
                "EP": 0.6,
                "C": 0.5,
                "N": 27.0,
                "num_with_map": 20.0,
                "num_by_mask": 8.0,
            }
        },
        "skill": {
            "lidar": {
                "all": {"skill": 0.25, "low": 0.1, "high": 0.4, "N": 27, "scenes": 8},
                "manoeuvre: stop": {"skill": -0.5, "low": nan, "high": nan, "N": 3, "scenes": 1},
                "macro": {"skill": -0.125, "N": 2},
            },
            "stationary": {"all": {"skill": -2.0, "low": None, "high": None, "N": 27, "scenes": 8}},
        },
    }
    metrics["tracking_protocol"] = "greedy < 2 m"
    _, page = page_of(tmp_path, metrics=metrics)
    heads = [[text for _, text in row] for row in page.rows if row[0][1] in ("sensors", "planner", "samples")]
    at = next(i for i, head in enumerate(heads) if any("AMOTA" in text for text in head))
    assert [text.split("position")[0] for text in heads[at]][1:3] == ["AMOTAover recalls", "AMOTP"]
    of_lidar = [[text for _, text in row] for row in page.rows if row[0][1] == "lidar"]
    assert ["lidar", "0.100", "1.400", "0.200 best", "0.300 best", "0.400 best", "12 best", DASH] in of_lidar
    assert ["lidar", DASH, DASH, "1.100", DASH, DASH, "1.00", "2.00", "27", "3"] in of_lidar
    assert ["lidar", "0.810", "0.900", DASH, "0.700", "0.600", "0.500"] in of_lidar
    shown = {row[0][1]: [text for _, text in row[1:]] for row in page.rows if "(" in row[0][1]}
    assert shown["all (N 27)"] == ["0.2500.100 to 0.400", "-2.000"]
    assert shown["manoeuvre: stop (N 3)"] == ["-0.500", DASH]
    assert shown["macro (2 manoeuvres)"] == ["-0.125", DASH]
    told = "samples 57cfe4ae; ego 4.084 x 1.85 m, centre +0.50 m of the LiDAR"
    exact, uniad = ([text for _, text in page.row(f"{name}{told}")[1:]] for name in ("exact", "uniad valid"))
    assert exact == ["275", "9", "2", *3 * ["0.250"], *3 * ["25.00"], "1.25"]
    assert uniad[3] == "0.750" and uniad[-1] == "1.25"
    assert "greedy < 2 m" in page.text and "12 by polygons, 8 by the mask alone" in page.text


def test_the_map_has_its_rows_and_baselines(tmp_path):
    def row(value: float) -> dict:
        iou = dict.fromkeys(MAP_CLASSES, value) | {"carpark_area": math.nan}
        return {"mIoU@0.5": value, "mIoU@best": value + 0.1, "IoU@0.5": iou}

    metrics = {
        "subsets": {"lidar": {"map": row(0.3)}, "camera+lidar": {"map": row(0.4)}},
        "map": {"everywhere": row(0.7)},
        "map_protocol": "cells < counted",
    }
    page = Page(write_report(tmp_path / "a.html", metrics).read_text())
    assert [text for _, text in page.row("lidar")[1:]] == ["0.300", "0.400", *["0.300"] * 4, DASH, "0.300"]
    assert page.row("camera + lidar")[1] == ("best", "0.400 best")
    assert page.row("everywhere")[1] == ("", "0.700") and "cells < counted" in page.text


def test_the_occupancy_has_its_rows_and_what_stays_as_it_is(tmp_path):
    def row(value: float) -> dict:
        layers = dict.fromkeys(LAYERS, value) | {"vru@0s": None, "static@0s": value + 0.2, "drivable": None}
        return {"IoU@0.5": layers, "IoU@best": layers}

    subsets = {"lidar": {"occupancy": row(0.3)}, "camera+lidar": {"occupancy": row(0.4)}, "camera": {"occupancy": {}}}
    metrics = {"subsets": subsets, "occupancy": {"still": row(0.7)}, "occupancy_protocol": "cells < counted"}
    page = Page(write_report(tmp_path / "a.html", metrics).read_text())
    assert [text for _, text in page.row("lidar")[1:]] == ["0.400", *["0.300"] * 5, "0.350", DASH]
    assert page.row("camera + lidar")[1] == ("best", "0.500 best")
    assert page.row("still")[1] == ("", "0.800") and "cells < counted" in page.text


def test_forecasts_have_a_row_for_every_subset_and_for_constant_velocity(tmp_path):
    def row(value: float, true: int = 5) -> dict:
        of = {"minADE_1": value, "minADE_5": value / 2, "intervals": {"minADE_1": [value - 0.1, value + 0.1]}}
        usual = {"minADE_1": 9.0, "intervals": {}}
        return {"true": true, "found": 3, "recall": 0.6, "intervals": {}, "model": of, "constant_velocity": usual}

    metrics = {
        "subsets": {
            name: {"motion": {"all": row(value), "stands": row(0.1, 0), "turns": row(3.0)}}
            for name, value in (("lidar", 0.8), ("camera+lidar", 0.4))
        },
        "motion_protocol": "found < true",
    }
    page = Page(write_report(tmp_path / "a.html", metrics).read_text())
    assert page.row("lidar")[2] == ("", "0.8000.700 to 0.900")
    assert page.row("constant velocity")[2] == ("", "9.000") and "found < true" in page.text
    assert page.row("camera + lidar")[2][0] == "best" and page.row("turns")[2][1].startswith("3.000")
    assert not [row for row in page.rows if row and row[0][1] == "stands"], "nobody stands"


def reliable(count: list[int]) -> dict:
    share = [None if n == 0 else (i + 0.5) / len(count) for i, n in enumerate(count)]
    return {"ECE": 0.123, "count": count, "confidence": share, "precision": share, "right": 5}


def found_out(picture) -> Findings:
    empty = reliable([0, 0]) | {"ECE": math.nan, "right": 0}
    before = {"all": reliable([1, 1]), "mean ECE": 0.3, "class": {"car": reliable([1, 1]), "bus": empty}}
    after = {"all": reliable([2, 2]) | {"ECE": 0.077}, "mean ECE": 0.07, "class": before["class"]}
    of_lidar = {"temperature": {"car": 1.25}, "before": before, "after": after}
    return Findings(
        reliability={"all": reliable([4, 0, 9]), "class": {"car": reliable([4, 0, 9]), "bus": empty}, "mean ECE": 0.1},
        calibration={
            "fit_split": "train",
            "split": "val",
            "same_samples": 3,
            "subsets": {"lidar": of_lidar},
        },
        similarity={"split": "val", "pairs": [{"maps": ["lidar", "radar"], "unbiased": 0.31, "cka": 0.4}]},
        robustness={
            "mRA": {"all": {"NDS": 0.71, "mAP": 0.61}},
            "worst": [{"condition": "radar.late, 0.4 s", "NDS": 0.1, "mAP": 0.3, "RA": {"NDS": 0.2}}],
            "corruptions": {
                "lidar.fog": {
                    "amounts": [1, 2, 3],
                    "NDS": [0.5, 0.4, 0.3],
                    "RA": {"NDS": 0.81, "mAP": 0.6, "intervals": {"NDS": [0.7, 0.9]}},
                },
                "radar.ghosts": {"amounts": [2], "NDS": [0.2], "RA": {"NDS": 0.31, "mAP": 0.2}},
            },
        },
        explained=[("speaks for <car>", picture)],
        worst=[WorstSample("scene-1, a<b", 0.0123, (("missed, at x 1.0", "traffic cone", 0.01),), 7, picture)],
        audit={
            "samples": 9,
            "scenes": 3,
            "changes": [
                {
                    "name": "speed x 5",
                    "moved": {"3s": {"mean": 8.5, "low": 7.25, "high": 9.5}},
                    "L2": {"3s": {"mean": -0.5, "low": None, "high": None}},
                },
                {"name": "no targets", "refused": "AttributeError: a < b"},
            ],
            "says": ["reacts to <speed>"],
            "leaks": ["targets: future"],
        },
    )


def test_everything_that_was_found_out_is_shown(tmp_path, picture):
    metrics = numbers()
    metrics["subsets"]["camera"]["intervals"] = {"NDS": [0.05, 0.151], "mAP": None}
    part = {"mAP": 0.777, "intervals": {"mAP": [0.7, 0.8]}}
    metrics["subsets"]["lidar"]["strata"] = {"light": {"night": part, "day": {"mAP": None}}}
    metrics["kept"] = {
        "camera+radar": {"NDS": 0.456, "mAP": 0.4, "intervals": {"NDS": [0.4, 0.5], "mAP": None}},
        "lidar": {"NDS": 0.789, "mAP": None},
    }
    metrics["subsets"]["radar"]["intervals"] = {"AP.car": [0.011, 0.019]}
    whole = metrics["subsets"]["camera+lidar+radar"]
    whole |= {"AP_at": {"car": {"0.5": 0.321}}, "TP": {"car": {"ATE": 0.654}}, "range_from_nearest_pose": 37}
    whole["intervals"] = {"ATE.car": [0.5, 0.8]}
    metrics["remarks"] = ["1 x <odd>"]
    metrics["shapley"] = {
        "intervals": {"NDS": {"lidar": [0.45, 0.55], "radar": None}, "AP.car": {"camera": [0.1, 0.12]}},
        "NDS": {"camera": 0.1, "lidar": 0.5, "radar": -0.02},
        "mAP": {"camera": 0.1, "lidar": 0.4, "radar": 0.2},
        "AP": {"car": {"camera": 0.111, "lidar": 0.222, "radar": 0.333}},
        "strata": {"distance": {"0-20 m": {"mAP": {"camera": 0.044, "lidar": 0.3, "radar": 0.1}}}},
    }
    html, page = page_of(tmp_path, metrics=metrics, findings=found_out(picture))
    assert page.row("camera")[1][1] == "0.1000.050 to 0.151"
    assert page.row("night")[1][1] == "0.7770.700 to 0.800" and page.row("day")[1][1] == DASH
    assert "In mAP by distance" in page.text and "The file: 1 x <odd>." in page.text
    assert "37 samples have no LIDAR_TOP" in page.text
    assert [text for _, text in page.row("car")[1:3]] == ["0.321", "0.6540.500 to 0.800"]
    kept = [text for _, text in page.row("without lidar")]
    rows = metrics["subsets"]
    assert kept[1:3] == [f"{rows['camera+radar']['NDS']:.3f}", "0.4560.400 to 0.500"]
    assert page.row("lidar alone")[2][1] == "0.789"
    assert "-0.020 (-3 %)" in page.text and "0.500 (86 %) [0.450, 0.550]" in page.text
    assert "0.1110.100 to 0.120" in page.text and "0.011 to 0.019" in page.text
    assert [text for _, text in page.row("0-20 m")[1:]] == ["0.044", "0.300", "0.100"]
    assert [text for _, text in page.row("speed x 5")[1:]] == ["8.5007.250 to 9.500", "-0.500"]
    assert [text for _, text in page.row("no targets")[1:]] == [DASH, DASH]
    assert "Leak. targets: future" in page.text and "reacts to <speed>" in page.text and "9 samples of 3" in page.text
    fog = [text for _, text in page.row("lidar.fog")[1:]]
    assert fog == ["0.500", "0.400", "0.300", "0.8100.700 to 0.900", "0.600"]
    assert [text for _, text in page.row("radar.late, 0.4 s")[1:]] == ["0.100", "0.200", DASH]
    assert [text for _, text in page.row("radar.ghosts")[1:]] == [DASH, "0.200", DASH, "0.310", "0.200"]
    names = [row[0][1] for row in page.rows if row]
    assert names.index("radar.ghosts") < names.index("lidar.fog")  # the worst first
    assert html.count('class="column"') == 4 + 8 and "busECE" not in page.text  # two bins each, none of a class without
    places = [page.text.index(name) for name in ("all classes, before", "all classes, after", "car, after")]
    assert places == sorted(places)
    for said in ("ECE 0.123", "ECE 0.077", "With lidar:", "3 samples are in both", "1.250", "0.310", "speaks for <car>",
                 "scene-1, a<b: 0.0123 mAP", "missed, at x 1.0", "and 7 more", "0.01000"):  # fmt: skip
        assert said in page.text, said
    assert html.count("data:image/png") == 2 and not re.search(r"https?:|@import|url\(", html)


def test_a_number_stands_under_its_severity():
    ghosts = {"amounts": [2, 3], "NDS": [0.2, 0.1], "RA": {"NDS": 0.31, "mAP": 0.2}}
    html = robustness({"corruptions": {"radar.ghosts": ghosts}}, ())
    assert "severity 1" not in html and html.index("severity 2") < html.index("severity 3")
    assert html.index("0.200") < html.index("0.100")


def test_a_curve_is_shown_as_it_was_drawn(tmp_path):
    path = tmp_path / "robustness-offset.svg"
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    html, page = page_of(tmp_path, metrics={}, findings=Findings(curves=[path]))
    assert "data:image/svg+xml;base64," in html and "<script" not in html and "robustness offset" in page.text
