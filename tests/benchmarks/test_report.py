from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks.report import main, slug, write_report
from benchmarks.reporting import plots
from benchmarks.reporting.records import parse
from benchmarks.reporting.rows import as_rows
from benchmarks.reporting.tables import report

from .synthetic import CPU, values, write_run


def text_of(*records):
    return report(as_rows(parse(record, "test") for record in records))


def section(text, heading):
    return text.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def cells(text):
    """Return the rows of the table in the text, without its header."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [re.split(r" ?\| ?", line)[1:-1] for line in lines[2:]]


def measurements(text):
    """Return the rows of the largest table as dictionaries by column name."""
    part = section(text, "Every measurement")
    (head,) = (line for line in part.splitlines() if line.startswith("| operator"))
    names = re.split(r" ?\| ?", head)[1:-1]
    return [dict(zip(names, line, strict=True)) for line in cells(part)]


def test_a_full_line():
    (line,) = measurements(
        text_of(
            values(us=60.0, flops=12_000_000_000, matmul_teraflops_ceiling=800.0),
            values(us=300.0, implementation="eager"),
            values(us=75.0, implementation="compiled"),
            values(us=66.0, implementation="max-autotune"),
            values(us=54.0, implementation="liger"),
        )
    )
    assert line == {
        "operator": "td_layer_norm", "direction": "forward", "shape": "64 x 257 x 960", "us": "60.0", "GB/s": "2500",
        "of copy": "83%", "TFLOP/s": "200 (25%)", "x eager": "5.00", "x compiled": "1.25",
        "x max-autotune": "1.10", "x others": "liger 0.90", "fastest rival": "liger 54.0", "host us": "15.0",
        "peak MB": "75.0", "error": "2.0e-03",
    }  # fmt: skip


def test_what_was_not_measured_stays_empty():
    text = text_of(
        values(us=300.0, implementation="eager"),
        values(us=60.0, shape="8 x 257 x 960", batch=8, kernel_us=None, relative_error_float64=None),
    )
    first, second = measurements(text)
    filled = {name for name, value in second.items() if value}
    assert filled == {"operator", "direction", "shape", "fastest rival"}
    assert second["fastest rival"] == "eager 300.0"
    empty = {name for name, value in first.items() if not value}
    assert empty == {
        "us", "x eager", "x compiled", "x max-autotune", "fastest rival", "error",
    }  # fmt: skip
    assert {line[-1] for line in cells(section(text, "Targets")) if line[3] == ""} == {"not measured"}


def test_targets_in_words():
    lines = cells(section(text_of(values(us=60.0), values(us=150.0, implementation="eager")), "Targets"))
    assert ["td_layer_norm", "forward", ">= 4x eager", "2.50x", "64 x 257 x 960", "missed"] in lines
    wide = ">= 85% of copy bandwidth, 480 to 1152 wide"
    assert ["td_layer_norm", "forward", wide, "83.3%", "64 x 257 x 960", "missed"] in lines
    assert ["td_layer_norm", "forward", "host time <= 25 us", "15.0 us", "64 x 257 x 960", "met"] in lines
    assert ["geglu", "backward", ">= 90% of copy bandwidth", "", "", "not measured"] in lines
    assert not [line for line in lines if "1.5x eager" in line[2]]  # a CPU's


def test_summary_is_over_the_target_shapes():
    text = text_of(
        values(us=60.0, host_us=10.0),
        values(us=90.0, implementation="eager"),
        values(us=100.0, shape="64 x 1024 x 480", width=480, host_us=12.0),
        values(us=900.0, shape="1 x 257 x 960", batch=1, scope="sweep"),
    )
    (line,) = cells(text.partition("<!-- summary -->")[2].partition("<!-- end of summary -->")[0])
    assert line == ["td_layer_norm", "forward", "50% to 83%", "1.50", "", "11"]


def test_host_times_beside_those_of_rivals():
    text = text_of(values(host_us=20.0), values(implementation="layer_norm", host_us=6.5))
    assert "| operator | ours | layer_norm |" in section(text, "Host time")
    assert cells(section(text, "Host time")) == [["td_layer_norm", "20.0", "6.5"]]


def test_a_cpu_report_says_so():
    shuffle = {"on": CPU, "operator": "pixel_shuffle_add"}
    text = text_of(values(us=60.0, **shuffle), values(us=180.0, implementation="eager", **shuffle))
    assert "**CPU figures.**" in text
    assert "Triton none, CUDA none, Python 3.12.1; float32." in text
    assert "## Host time" not in text
    assert measurements(text) == [
        {
            "operator": "pixel_shuffle_add", "direction": "forward", "shape": "64 x 257 x 960", "wall us": "80.0",
            "GB/s": "2500", "of copy": "83%", "x eager": "2.50", "x compiled": "", "x max-autotune": "",
            "fastest rival": "eager 200.0", "error": "2.0e-03",
        }
    ]  # fmt: skip
    assert cells(section(text, "Targets")) == [
        ["pixel_shuffle_add", "forward", ">= 1.5x eager", "2.50x", "64 x 257 x 960", "met"],
        ["pixel_shuffle_add", "backward", ">= 1.5x eager", "", "", "not measured"],
    ]


def test_two_dtypes_are_told_apart():
    lines = measurements(text_of(values(us=50.0), values(us=100.0, dtype="float32")))
    assert {line["shape"]: line["us"] for line in lines} == {
        "64 x 257 x 960 bfloat16": "50.0",
        "64 x 257 x 960 float32": "100.0",
    }


def test_a_gpu_report_does_not_speak_of_cpus():
    text = text_of(values())
    assert "CPU figures" not in text
    assert "wall us" not in text


def test_notes_of_the_records():
    text = text_of(
        values(kernel_timing="cuda graph"),
        values(implementation="liger", note="without a timestep", kernel_timing="events, no graph: it waits"),
    )
    assert section(text, "Notes").strip().splitlines() == [
        "- td_layer_norm, liger: without a timestep",
        "- td_layer_norm, liger, forward: timed by events, no graph: it waits",
    ]
    (line,) = measurements(text)
    assert (line["x others"], line["fastest rival"]) == ("liger* 1.00", "liger* 100.0")
    assert "## Notes" not in text_of(values())


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
        ("AMD EPYC 7B13", "amd-epyc-7b13"),
        ("  Some CPU (R) @ 2.0 GHz ", "some-cpu-r-2-0-ghz"),
        ("../../etc", "etc"),
    ],
)
def test_slug(device, expected):
    assert slug(device) == expected


def test_slug_of_nothing():
    with pytest.raises(ValueError, match="no letter or digit"):
        slug("//")


def test_files(tmp_path):
    pytest.importorskip("matplotlib")
    images = pytest.importorskip("matplotlib.image")
    first = write_run(tmp_path / "first.json", values(us=60.0), values(us=90.0, implementation="eager"))
    second = write_run(tmp_path / "second.json", values(us=50.0))
    main([str(first), str(second), "--output", str(tmp_path / "results")])
    folder = tmp_path / "results" / "nvidia-h100-80gb-hbm3"
    assert {path.name for path in folder.iterdir()} == {"records.json", "report.md", "roofline.png", "speed_up.png"}
    assert [r["kernel_us"] for r in json.loads((folder / "records.json").read_text())["records"]] == [90.0, 50.0]
    for name in ("roofline.png", "speed_up.png"):
        picture = images.imread(folder / name)
        height, width, _ = picture.shape
        assert width >= 600
        assert height >= 200
        assert len({tuple(pixel) for pixel in picture.reshape(-1, picture.shape[2])[::7].tolist()}) > 10

    again = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_report([folder / "records.json"], tmp_path / "results")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == again


def test_the_nearer_ceiling_is_drawn():
    product = {"flops": 40_000_000_000, "matmul_teraflops_ceiling": 800.0}
    rows = as_rows(parse(record, "test") for record in (values(us=100.0, **product), values(operator="geglu")))
    assert plots.fractions(rows[0])["fused"] == pytest.approx(0.5)  # 400 of 800 TFLOP/s, and as much of the copy
    assert plots.fractions(rows[1])["fused"] == pytest.approx(0.5)
    (row,) = as_rows([parse(values(us=80.0, **product | {"flops": 48_000_000_000}), "test")])
    assert plots.fractions(row)["fused"] == pytest.approx(0.75)


def test_arithmetic_on_a_cpu_is_held_against_multiply_adds():
    record = values(us=1000.0, on=CPU, wall_us=1000.0, flops=100_000_000, multiply_add_teraflops_ceiling=0.25)
    (line,) = measurements(text := text_of(record))
    assert line["TFLOP/s"] == "0.1 (40%)"
    assert "multiply-adds in registers 250 GFLOP/s" in text
    (row,) = as_rows([parse(record, "test")])
    assert plots.fractions(row)["fused"] == pytest.approx(0.4)


def test_ours_is_drawn_and_what_it_lacks_is_not(tmp_path):
    pytest.importorskip("matplotlib")
    rows = as_rows(
        parse(record, "test")
        for record in (
            values(us=60.0),
            values(us=90.0, implementation="eager"),
            values(us=90.0, implementation="eager", operator="geglu"),
            values(us=90.0, scope="sweep", shape="1 x 257 x 960"),
        )
    )
    roofline = plots.panels(rows, plots.fractions)
    assert {key: [row.shape for row in group] for key, group in roofline.items()} == {
        ("td_layer_norm", "forward"): ["64 x 257 x 960"]
    }
    assert plots.panels(rows[1:], plots.fractions).keys() == {("td_layer_norm", "forward")}  # only sweeps: all of them


def test_nothing_to_draw(tmp_path):
    pytest.importorskip("matplotlib")
    rows = as_rows([parse(values(implementation="eager"), "test")])
    plots.save_speed_ups(tmp_path / "plot.png", rows)
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_an_error_leaves_the_old_report(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder = write_report([write_run(tmp_path / "good.json", values())], tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    bad = write_run(tmp_path / "bad.json", values(wall_us=None))
    with pytest.raises(SystemExit) as stop:
        main([str(bad), "--output", str(tmp_path)])
    assert stop.value.code == 1
    assert f"{bad}: test_0: key 'wall_us' is missing" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    run = write_run(tmp_path / "run.json", values())
    folder = write_report([run], tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail_half_way(figure, path, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        write_report([run], tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.slow
def test_what_the_benchmarks_write_is_read(tmp_path):
    pytest.importorskip("matplotlib")
    run = tmp_path / "run.json"
    chosen = "td_rms_norm-target-8x257x960 and eager and not residual"
    command = ["-m", "pytest", "benchmarks", "-q", "-k", chosen, "--benchmark-only", f"--benchmark-json={run}"]
    root = Path(benchmarks.__file__).parents[1]
    subprocess.run([sys.executable, *command, "-p", "no:cacheprovider"], cwd=root, check=True, capture_output=True)
    folder = write_report([run], tmp_path / "results")
    lines = measurements((folder / "report.md").read_text())
    assert [(line["operator"], line["direction"]) for line in lines] == [
        ("td_rms_norm", "forward"),
        ("td_rms_norm", "backward"),
        ("td_rms_norm", "forward backward"),
    ]
    assert all(line["fastest rival"] for line in lines)


def test_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit):
        main([str(write_run(tmp_path / "run.json", values())), "--output", str(tmp_path)])
    assert "pip install 'dimr_kernels[bench]'" in capsys.readouterr().err


def test_no_such_file(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "absent.json")])
    assert "absent.json" in capsys.readouterr().err
