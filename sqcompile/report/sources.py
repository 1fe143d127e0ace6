"""The code of every kernel, cut out of a run folder's listings. Nothing is executed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqcompile.report.embed import packed

MOST = 2_000_000
"""Characters of packed code in a page; what does not fit is named by its file."""
_LABEL = re.compile(r"^([.\w$]+):")
_NOISE = re.compile(r"^(\s*\.|\.L(tmp|func_begin|func_end)\d+:|\s*#|\s*$)")
_CALLED = re.compile(r"\.L__tvm_parallel_lambda[.\d]*")


class Listing(NamedTuple):
    """A text about a kernel: what it is ("assembly"), its file in the run folder, the text."""

    title: str
    file: str
    text: str


def listings(folder: Path, report: Mapping[str, Any]) -> dict[str, list[Listing]]:
    """What a run folder's first variant holds of every kernel, by the kernel's name."""
    place = folder / "variant_0"
    found: dict[str, list[Listing]] = {}
    for kernel, listing in (*_assembly(place), *_cuda(place), *_vta(place, report)):
        found.setdefault(kernel, []).append(listing)
    return found


def embedded(found: Mapping[str, Sequence[Listing]], most: int = MOST) -> dict[str, Any]:
    """{kernel: [{"title", "file", "packed"}]}: the shortest texts first as long as they fit, ""
    for the others."""
    texts = [(kernel, one) for kernel, several in found.items() for one in several]
    kept: dict[str, list[dict[str, str]]] = {kernel: [] for kernel in found}
    left = most
    for kernel, one in sorted(texts, key=lambda entry: len(entry[1].text)):
        text = packed(one.text) if left > 0 else ""
        left -= len(text)
        row = {"title": one.title, "file": one.file, "packed": text if left > 0 else ""}
        kept[kernel].append(row)
    for kernel, rows in kept.items():
        order = [one.title for one in found[kernel]]
        rows.sort(key=lambda row: order.index(row["title"]))
    return kept


def _assembly(place: Path) -> Iterator[tuple[str, Listing]]:
    """The loops of each kernel for the CPU: its function without the check of its arguments, and
    what its threads run."""
    for file in sorted(place.glob("kernels_*.s")):
        functions = _functions(file.read_text(encoding="utf-8"))
        for name in functions:
            if name.endswith("_compute_"):
                text = "\n".join(_with_called(name, functions))
                where = f"{place.name}/{file.name}"
                yield name.removesuffix("_compute_"), Listing("assembly", where, text)


def _functions(assembly: str) -> dict[str, list[str]]:
    """The lines of every function, without directives and marks for debuggers."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in assembly.splitlines():
        if line.startswith("\t.size") and current is not None:
            current = None
        label = _LABEL.match(line)
        if label and (not label[1].startswith(".L") or "lambda" in label[1]):
            current = found.setdefault(label[1], [line])
        elif current is not None and (line.startswith(".LBB") or not _NOISE.match(line)):
            current.append(line)
    return found


def _with_called(name: str, functions: Mapping[str, Sequence[str]]) -> list[str]:
    lines = list(functions[name])
    called = dict.fromkeys(m for line in lines for m in _CALLED.findall(line) if m in functions)
    for one in called:
        lines += ["", *functions[one]]
    return lines


def _cuda(place: Path) -> Iterator[tuple[str, Listing]]:
    """CUDA source and machine code for the newest architecture."""
    architectures = sorted((one for one in place.glob("sm_*") if one.is_dir()), key=_number)
    for folder in architectures[-1:]:
        for file in sorted(folder.glob("*.cu")):
            for suffix, title in ((".cu", "CUDA"), (".sass", "SASS")):
                text = file.with_suffix(suffix)
                if text.is_file():
                    where = f"{place.name}/{folder.name}/{text.name}"
                    listing = Listing(f"{title}, {folder.name}", where, text.read_text("utf-8"))
                    yield file.stem, listing


def _number(folder: Path) -> int:
    return int("".join(filter(str.isdigit, folder.name)) or 0)


def _vta(place: Path, report: Mapping[str, Any]) -> Iterator[tuple[str, Listing]]:
    """The accelerator's programs, and the TIR that they were written from, by the product
    ("forward/mm_1") that they compute."""
    for row in (report["accelerator"] or {}).get("programs", ()):
        for name in row["programs"]:
            for suffix, title in ((".txt", "VTA"), (".tir", "TIR of")):
                file = place / f"{name}{suffix}"
                if file.is_file():
                    text = file.read_text("utf-8")
                    yield (
                        row["product"],
                        Listing(f"{title} {name}", f"{place.name}/{file.name}", text),
                    )
