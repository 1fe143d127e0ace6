"""What a page is made of: stored graphs, kernels' code, rows of layers, plots."""

import pytest

from sqcompile.report import graphs, sources
from sqcompile.report.data import read, report
from sqcompile.report.embed import Pool
from sqcompile.report.figures import figures
from sqcompile.report.layers import layers, node_times
from sqcompile.report.traffic import traffic


@pytest.mark.parametrize("content", [None, "{", "[]", '{"format": 0}'])
def test_a_folder_without_graphs_of_this_version(tmp_path, content):
    if content is not None:
        (tmp_path / "stages.json").write_text(content)
    assert graphs.read(tmp_path, {"calls": {}}) is None


def test_inputs_are_told_by_what_they_are(run_folder):
    found = graphs.read(run_folder, read(run_folder)).stages["captured"]
    ports = {entry.name: graphs.port(entry) for entry in found}
    assert ports["p_stem_weight"] == "parameter stem_weight"
    assert (ports["x_0"], ports["g_0"]) == ("input 0", "gradient of output 0")
    assert {ports[entry.name] for entry in found if entry.op != "placeholder"} == {""}


def test_a_pool_stores_a_value_once():
    pool = Pool()
    assert pool.steps("abca") == [0, 1, 1, -2]
    assert pool.steps("cd") == [2, 1]
    assert pool.values() == list("abcd")


def test_assembly_is_that_of_the_kernel_with_what_its_threads_run(run_folder):
    (listing,) = next(iter(sources.listings(run_folder, read(run_folder)).values()))
    assert (listing.title, listing.file) == ("assembly", "variant_0/kernels_0.s")
    assert [line.strip() for line in listing.text.splitlines()[1:]] == [
        "pushq\t%rbp",
        "leaq\t.L__tvm_parallel_lambda(%rip), %rdi",
        "retq",
        "",
        ".L__tvm_parallel_lambda:",
        ".LBB1_1:",
        "vpdpbusd\t%zmm0, %zmm1, %zmm2",
    ]


def test_listings_of_a_gpu_and_of_an_accelerator(tmp_path):
    place = tmp_path / "variant_0"
    for architecture in ("sm_80", "sm_120"):
        (place / architecture).mkdir(parents=True)
        (place / architecture / "mm.cu").write_text(architecture)
    (place / "sm_120" / "mm.sass").write_text("IMMA")
    (place / "p-1.txt").write_text("GEMM")
    (place / "p-1.tir").write_text("vta.gemm")
    programs = [{"product": "forward/mm", "programs": ["p-1", "gone"]}]
    found = sources.listings(tmp_path, {"accelerator": {"programs": programs}})
    assert [(one.title, one.text) for one in found["mm"]] == [
        ("CUDA, sm_120", "sm_120"),
        ("SASS, sm_120", "IMMA"),
    ]
    assert [(one.title, one.file) for one in found["forward/mm"]] == [
        ("VTA p-1", "variant_0/p-1.txt"),
        ("TIR of p-1", "variant_0/p-1.tir"),
    ]


def test_code_that_does_not_fit_is_named_by_its_file():
    long, short = (sources.Listing("assembly", f"{n}.s", "x" * n) for n in (5000, 5))
    kept = sources.embedded({"a": [long], "b": [short]}, most=40)
    assert kept["b"][0]["packed"] and kept["a"] == [
        {"title": "assembly", "file": "5000.s", "packed": ""}
    ]


def test_a_layer_has_its_bits_bytes_errors_and_times(run_folder):
    data = read(run_folder)
    found = graphs.read(run_folder, data)
    rows = {row["module"]: row for row in layers(data, found)}
    conv = rows["blocks.0.conv2"]
    assert (conv["weight"], conv["activation"], conv["gradient"]) == ("s4", "u4", "s4")
    assert conv["forward_macs"] * 2 == conv["backward_macs"]
    assert 5 < conv["sqnr"] < 40 and conv["worst"]
    assert conv["forward_ms"] > 0 and conv["backward_ms"] is None
    assert sum(row["bytes"] for row in rows.values()) == data["saved"]["bytes"]
    assert sum(row["forward_ms"] or 0 for row in rows.values()) == pytest.approx(
        sum(node_times(data["timing"], found).values())
    )


def test_plots_are_of_what_was_measured(run_folder, resnet):
    data = read(run_folder)
    found = graphs.read(run_folder, data)
    plots = figures(data, found)
    assert list(plots) == ["errors", "memory", "time", "roofline", "training"]
    points = sum(len(trace["x"]) for trace in plots["errors"]["data"])
    assert points == sum(tensor["sqnr_db"] is not None for tensor in data["tensors"])
    assert list(figures(report(resnet), None)) == ["memory"]


def test_a_kernel_moves_all_it_reads_and_writes(run_folder):
    data = read(run_folder)
    found = graphs.read(run_folder, data)
    points = {point["kernel"]: point for point in traffic(data, found)}
    point = points["conv_fprop_sums (stem)"]
    moved = 4 * 12 * 12 * 3 + 8 * 3 * 3 * 3 + 4 * (4 * 12 * 12 * 8) + 8 * 8
    macs = 4 * 12 * 12 * 8 * 3 * 3 * 3
    assert point["intensity"] == pytest.approx(macs / moved)
    assert point["macs_per_s"] == pytest.approx(macs / 0.25e-3)
    assert point["measured"] and point["where"] == "cpu fprop"


def test_estimates_of_a_gpu_are_called_so(resnet):
    estimate = {"device": "A100", "us": 2.0, "bound": "memory"}
    row = {"mode": "train", "kernel": "mm", "macs": 1000, "bytes": 500, "estimate": estimate}
    rows = [row, row | {"mode": "eval"}]
    (point,) = traffic(report(resnet) | {"kernels": rows}, None)
    assert (point["intensity"], point["macs_per_s"], point["measured"]) == (2.0, 5e8, False)
