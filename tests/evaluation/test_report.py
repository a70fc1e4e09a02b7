"""The report: what it shows, what it says of what is missing, and how a browser renders it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from evaluation_runs import write_evaluation, write_run
from PIL import Image

from sparface import settings
from sparface.config import Config
from sparface.errors import UserError
from sparface.recipes import registry
from sparface.report import charts
from sparface.report.compare import Report, compare
from sparface.report.formats import setting
from sparface.report.read import read_runs
from sparface.runs import captions


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two complete runs."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_run(folder / "plain", "recognizer", points=60, seed=1),
        write_run(folder / "spar", "sparring", points=30, seed=2),
    ]


@pytest.fixture(scope="module")
def page(runs: list[Path]) -> Path:
    path = runs[0].parent / "new" / "report.html"
    compare(runs, path)
    return path


class Elements(HTMLParser):
    """Everything that a page would load, and its open tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(page: Path) -> None:
    text = page.read_text()
    elements = Elements(text)
    assert not elements.open
    assert len(elements.sources) > 15 and all(source.startswith("data:") for source in elements.sources)
    assert not re.search(r"https?://|<script|@import|url\(", text)
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]


def test_the_page_shows_the_runs(page: Path, runs: list[Path]) -> None:
    text = page.read_text()
    result = json.loads(next((runs[1] / "evaluations").iterdir()).read_text())["figures"]
    assert f"{100 * result['accuracy']:.2f} %" in text and f"{result['auc']:.4f}" in text
    for words in (
        "sparring face",
        "perturbation δ·m",
        "whitened face",
        "attack term",
        "triplet loss",
        "pairsDevTest",
    ):
        assert words in text
    assert "&lt;b&gt;0012&lt;/b&gt; &amp; co" in text, "an event's text is escaped"
    assert "loss_spike × 1" in text and "No events." in text


def test_only_settings_that_differ_are_listed(runs: list[Path]) -> None:
    keys = [key for key, _ in Report(read_runs(runs)).differences]
    assert keys == ["recipe", "optimizer.learning_rate", "schedule.images", "training.seed"]
    assert [setting(value) for value in (None, "", True, 2e-4)] == ["—", "—", "true", "0.0002"]


def test_accuracy_against_the_share_of_made_faces(tmp_path: Path, runs: list[Path]) -> None:
    folders = [
        write_run(tmp_path / f"mix-{groups}", points=20, mix={"shards/made": groups} if groups else None)
        for groups in (0, 2, 6)
    ]
    report = Report(read_runs(folders))
    assert [run.mixed for run in report.runs] == [0.0, 0.25, 0.75]
    assert report.mix is not None
    compare(folders, tmp_path / "report.html")
    assert "share of additional sets" in (tmp_path / "report.html").read_text()
    assert Report(read_runs(runs)).mix is None


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    settings.save(Config(), tmp_path / "new" / "config.yaml")
    compare([tmp_path / "new"], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    for words in (
        "no evaluation yet",
        "evaluate verification --checkpoint",
        "No pictures yet",
        "Nothing logged yet",
    ):
        assert words in text
    assert "<img" not in text and not Elements(text).open


def test_a_run_that_recognizes_nothing_is_not_asked_for_its_accuracy(
    tmp_path: Path, runs: list[Path]
) -> None:
    purifier = write_run(tmp_path / "purifier", points=20)
    shutil.rmtree(purifier / "evaluations")
    captions.save(registry.find("purifier"), ["purifier"], purifier)
    metrics = (purifier / "metrics.jsonl").read_text()
    (purifier / "metrics.jsonl").write_text(metrics.replace("validation/", "other/"))
    (purifier / "previews").rename(purifier / "hidden")
    compare([purifier], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "it has no accuracy" in text and "sparface evaluate" not in text and "δ" not in text
    compare([purifier, *runs], tmp_path / "report.html")
    assert "δ" in (tmp_path / "report.html").read_text()


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", points=5)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"images": 6000, "loss": NaN, "broken_metric": null}\n{"images": 7000, "lo')
    with (run / "events.jsonl").open("a") as file:
        file.write("[]\n")
    (run / "evaluations" / "other.json").write_text("{}")
    (run / "previews" / "000009000-face.png").write_bytes(b"no picture")
    compare([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "unreadable: events.jsonl:1, other.json, 000009000-face.png" in text


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("events.jsonl", '{"kind": "x", "images": "many"}\n'),
        ("events.jsonl", '{"kind": ["x"]}\n'),
        (
            "evaluations/other.json",
            '{"name": "x", "figures": {"accuracy": 1}, "provenance": {"images_seen": 1}}',
        ),
    ],
)
def test_fields_of_the_wrong_kind_are_named_and_the_rest_is_shown(
    file: str, text: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", points=3)
    (run / file).write_text(text)
    compare([run], tmp_path / "report.html")
    assert f"unreadable: {Path(file).name}" in (tmp_path / "report.html").read_text()


def test_a_number_that_no_float_holds_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", points=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"images": 4000, "time": 1, "loss": 1' + "0" * 400 + "}\n")
    assert read_runs([run])[0].metrics["loss"][0] == [1000, 2000, 3000]


def test_a_preview_outside_of_the_run_is_not_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", points=3)
    (tmp_path / "private.png").write_bytes((run / "previews" / "000003000-face.png").read_bytes())
    (run / "previews" / "000009000-face.png").symlink_to(tmp_path / "private.png")
    compare([run], tmp_path / "report.html")
    assert "unreadable: 000009000-face.png" in (tmp_path / "report.html").read_text()


def test_a_folder_named_like_a_formula(tmp_path: Path) -> None:
    compare([write_run(tmp_path / r"a$_$b", points=3)], tmp_path / "report.html")
    assert "a$_$b" in (tmp_path / "report.html").read_text()


def test_what_is_no_run_is_refused(tmp_path: Path, runs: list[Path]) -> None:
    with pytest.raises(UserError, match="not a run"):
        compare([tmp_path], tmp_path / "report.html")
    (tmp_path / "config.yaml").write_text("just text")
    with pytest.raises(UserError, match="contains no settings"):
        compare([tmp_path], tmp_path / "report.html")
    with pytest.raises(UserError, match="given twice"):
        compare([runs[0], runs[0]], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent / "run").mkdir(parents=True)
        settings.save(Config(), tmp_path / parent / "run" / "config.yaml")
    assert [run.name for run in read_runs([tmp_path / "a/run", tmp_path / "b/run"])] == ["a/run", "b/run"]


def test_series_ascend_whatever_the_order_of_the_records(tmp_path: Path) -> None:
    settings.save(Config(), tmp_path / "config.yaml")
    records: list[dict[str, float]] = [
        {"images": 1000, "loss": 3.0, "system/cpu": 99.0},
        {"images": 3000, "loss": 2.0},
        {"images": 2000, "validation/accuracy": 0.7},
    ]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"time": 0, **record}) + "\n" for record in records)
    )
    (run,) = read_runs([tmp_path])
    assert run.metrics == {"loss": ([1000, 3000], [3.0, 2.0]), "validation/accuracy": ([2000], [0.7])}
    assert (run.images_seen, run.last("loss"), run.last("attack")) == (3000, 2.0, None)


def test_the_newest_evaluation_and_preview_count(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", points=3)
    write_evaluation(run, 2000, skill=3.0)
    newer = write_evaluation(run, 10_000, skill=0.0)
    (found,) = read_runs([run])
    assert found.evaluations["pairsDevTest"] == json.loads(newer.read_text())
    Image.new("RGB", (522, 66)).save(run / "previews" / "000010000-face.png")
    assert read_runs([run])[0].previews["face"].name == "000010000-face.png"


def test_names_at_curves_keep_their_distance() -> None:
    places = charts.spread([0, 1, 2, 50, 99, 100], gap=10, top=100)
    assert np.diff(places).min() >= 10 and max(places) <= 100
    assert charts.spread([5, 50], gap=10, top=100) == [5, 50]


def test_running_mean_leaves_out_what_is_not_finite() -> None:
    values = np.array([1.0, 2.0, np.nan, 4.0, 6.0])
    np.testing.assert_allclose(charts.running_mean(values, 1), [1.5, 1.5, 3.0, 5.0, 5.0])


def test_strips_are_the_first_row(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", points=1, size=32)
    path = run / "previews" / "000001000-face.png"
    png, width = charts.strip(path)
    (tmp_path / "strip.png").write_bytes(png)
    with Image.open(tmp_path / "strip.png") as row, Image.open(path) as grid:
        assert row.size == (width, 36) == (8 * 34 + 2, 36)
        np.testing.assert_array_equal(np.asarray(row), np.asarray(grid)[:36])


def test_a_browser_renders_the_page(page: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    probe = tmp_path / "probe.html"
    script = """<script>addEventListener("load", () => {
        const images = [...document.images];
        document.title = JSON.stringify({images: images.length,
            broken: images.filter(image => !image.naturalWidth).length,
            wide: document.documentElement.scrollWidth - innerWidth});
    })</script></body>"""
    probe.write_text(page.read_text().replace("</body>", script))
    quiet = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync --hide-scrollbars"
    )
    more = "--disable-background-networking --disable-component-update --enable-logging=stderr --dump-dom"
    for width in (1200, 500):
        seen = subprocess.run(
            [browser, *quiet.split(), *more.split(), f"--user-data-dir={tmp_path / str(width)}",
             f"--window-size={width},900", probe.as_uri()],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        title = re.search(r"<title>(.*?)</title>", seen.stdout)
        assert title and "CONSOLE" not in seen.stderr
        found = json.loads(title[1])
        assert found["images"] > 15 and found["broken"] == 0 and found["wide"] <= 0


def test_a_link_in_a_run_brings_no_file_of_mine_into_the_report(tmp_path: Path) -> None:
    run, mine = tmp_path / "run", tmp_path / "mine.png"
    (run / "previews").mkdir(parents=True)
    (run / "config.yaml").write_text("size: 32\n")
    Image.new("RGB", (40, 40), "red").save(mine)
    (run / "previews" / "000000001-face.png").symlink_to(mine)
    compare([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "000000001-face.png" in page and "data:image/png" not in page
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to(mine)
    with pytest.raises(UserError, match="outside the folder"):
        compare([run], tmp_path / "again.html")
    assert not (tmp_path / "again.html").exists()


def test_other_evaluations_are_shown_with_their_intervals(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", points=3)
    document = {
        "kind": "identification",
        "name": "identify-on-ar",
        "figures": {"scarf/rank_1": 0.953, "alone": 0.5},
        "intervals": {"scarf/rank_1": [0.92, 0.98], "alone": [None, None]},
        "provenance": {"images_seen": 3000},
    }
    (run / "evaluations/identify-on-ar-000003000.json").write_text(json.dumps(document))
    document["intervals"] = {"scarf/rank_1": [0.92]}
    (run / "evaluations/damaged.json").write_text(json.dumps(document))
    compare([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "scarf/rank_1" in text and "95.3 % [92.0, 98.0]" in text and ">50.0 %<" in text
    assert "unreadable: damaged.json" in text and "pairsDevTest" in text
