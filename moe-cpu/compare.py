#!/usr/bin/env python3
"""Compares the layer with PyTorch on this machine's processor, in one run, and writes a table and a picture.

    cargo build --release -p moe-cpu --example table
    python3 moe-cpu/compare.py                  # prints the table
    python3 moe-cpu/compare.py --write          # puts it into docs/performance.md, and the picture into docs/cpu.svg
    python3 moe-cpu/compare.py --ggml FOLDER    # with ggml, whose built libraries are in FOLDER

PyTorch and moe take turns, `--rounds` times each, and the middle of the rounds is given. Rates count the expert products
alone, 6 T K D F operations forward and 18 T K D F with backward, over the time of the whole layer, router included. A share is the
rate over that of the multipliers, which `table` measures beside every pass. For one and eight tokens the figure is the
time over that of reading the weights of the experts they touch, which are in no cache when a call begins.

PyTorch has two layers: `torch._grouped_mm` between a gather and a sum by index, and the loop over experts with `index_add`
that transformers runs, each expert's weights a tensor. A peer that takes more than ten times as long as moe is measured once.
Packing, which happens once after weights have changed, is in none of these figures; a second table has it, and whole steps with
AdamW and packing, for moe alone. ggml, if there is one, runs what llama.cpp does, forward only: `compare_ggml.py`. A variant that
this PyTorch lacks is left out, and said so. Without PyTorch only moe is measured.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

try:
    import torch
except ImportError:
    torch = None

from compare_ggml import Ggml, Layer

ROOT = Path(__file__).resolve().parent.parent
# tokens, width, hidden width, experts, experts per token: as `table` knows them
SHAPES = {
    "S": (512, 256, 512, 8, 2),
    "M": (512, 2048, 768, 128, 8),
    "L": (256, 1024, 3584, 8, 2),
    "D1": (1, 2048, 768, 128, 8),
    "D8": (8, 2048, 768, 128, 8),
}
FEW = 16
SLOW = 10
# Bytes that pass before each call of few tokens, as in `table`: in a model the weights of other layers.
OTHERS = 128 << 20
DTYPES = ("f32", "bf16")
BEGIN, END = "<!-- compare.py: begin -->", "<!-- compare.py: end -->"
PASS = re.compile(r"^\S+ \S+ (fwd|fwdbwd): [\d.]+ GFLOP/s; share of (\d+):.*; middle ([\d.]+) ms")
STEP = re.compile(r"^\S+ \S+ (fwdbwd|packing|step): .*?([\d.]+) ms[ ,]")
DECODE = re.compile(r"^\S+ \S+ fwd: .* floor of ([\d.]+) MB at ([\d.]+) GB/s:.*; middle ([\d.]+) ms")


def say(text):
    print(text, file=sys.stderr, flush=True)


def attempt(what, work):
    """The result, or None after an error, which is printed: one variant that fails stops no other."""
    try:
        return work()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        say(f"{what} failed: {type(error).__name__}: {lines[0]}")
        return None


# PyTorch's layers


def routed(x, gate, top_k):
    weights, ids = torch.softmax((x @ gate.t()).float(), -1).topk(top_k)
    return weights / weights.sum(-1, keepdim=True), ids


def grouped(x, gate, w13, w2, top_k):
    weights, ids = routed(x, gate, top_k)
    slots = ids.flatten()
    order = slots.argsort(stable=True)
    ends = torch.bincount(slots, minlength=gate.shape[0]).cumsum(0).int()
    token = order // top_k
    gates, ups = torch._grouped_mm(x[token], w13.transpose(1, 2), offs=ends).chunk(2, -1)
    y = torch._grouped_mm(torch.nn.functional.silu(gates) * ups, w2.transpose(1, 2), offs=ends)
    of_slot = torch.empty_like(y).index_copy(0, order, y).view(*weights.shape, -1)
    return (of_slot * weights[..., None].to(y.dtype)).sum(1)


def loop(x, gate, w13, w2, top_k):
    weights, ids = routed(x, gate, top_k)
    out = torch.zeros_like(x)
    # The gradient of `w13[e]` would be as large as that of all experts.
    ups_of, downs_of = w13.unbind(), w2.unbind()
    for e in torch.unique(ids).tolist():
        token, k = (ids == e).nonzero(as_tuple=True)
        gates, ups = (x[token] @ ups_of[e].t()).chunk(2, -1)
        y = (torch.nn.functional.silu(gates) * ups) @ downs_of[e].t()
        out = out.index_add(0, token, y * weights[token, k, None].to(y.dtype))
    return out


VARIANTS = {"torch `_grouped_mm`": grouped, "torch, loop over experts": loop}


class Tensors:
    """Parameters and inputs of a layer."""

    def __init__(self, shape, dtype):
        tokens, width, hidden, experts, self.top_k = shape
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]

        def make(scale, *sizes):
            return (torch.randn(sizes) * scale).to(dtype)

        self.x, self.dy = make(1, tokens, width), make(1, tokens, width)
        self.weights = (
            make(width**-0.5, experts, width),
            make(width**-0.5, experts, 2 * hidden, width),
            make(hidden**-0.5, experts, width, hidden),
        )

    def run(self, function, name):
        if name == "fwd":
            with torch.no_grad():
                return function(self.x, *self.weights, self.top_k)
        inputs = [tensor.detach().requires_grad_() for tensor in (self.x, *self.weights)]
        out = function(*inputs, self.top_k)
        return [out.detach(), *torch.autograd.grad(out, inputs, self.dy)]


def check(ggml):
    """Ends the program if the layers differ: their times would say nothing."""
    tensors = Tensors((64, 32, 48, 4, 2), "f32")
    if ggml is not None:
        layer = Layer(ggml, tensors.x, *tensors.weights, tensors.top_k)
        layer.run()
        want = tensors.run(loop, "fwd")
        far = ((layer.result() - want).norm() / want.norm()).item()
        if not far < 1e-4:
            sys.exit(f"ggml differs by {far:.2g}")
    for a, b in zip(tensors.run(grouped, "fwdbwd"), tensors.run(loop, "fwdbwd")):
        far = ((a - b).norm() / b.norm()).item()
        if not far < 1e-4:
            sys.exit(f"the layers differ by {far:.2g}")


# Measuring


def timed(work, seconds, slow, before):
    """Middle of the times after a warm-up, in milliseconds: of `seconds`, and of three at least unless all are above `slow`.
    `before` is called before each of them."""
    work()
    begin, times = time.monotonic(), []
    while time.monotonic() - begin < seconds or (len(times) < 3 and min(times) <= slow):
        before()
        start = time.monotonic()
        work()
        times.append(1e3 * (time.monotonic() - start))
    return statistics.median(times)


def measured(args, shape, dtype, passes):
    """The lines of `table`."""
    command = [args.table.resolve(), "--threads", args.threads, "--seconds", args.seconds, "--shapes", shape]
    command += ["--types", dtype, "--passes", passes]
    lines = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    return lines.splitlines()


def step(args, shape, dtype):
    """Milliseconds of forward and backward, of packing, and of a step that has these and AdamW."""
    found = filter(None, map(STEP.match, measured(args, shape, dtype, "fwdbwd,step")))
    times = {each[1]: float(each[2]) for each in found}
    return [times[name] for name in ("fwdbwd", "packing", "step")]


def ours(args, shape, dtype, name):
    """Milliseconds, and the limit: operations a millisecond, or for few tokens the floor in milliseconds."""
    lines = measured(args, shape, dtype, name)
    for line in lines:
        if found := DECODE.match(line):
            megabytes, rate, middle = map(float, found.groups())
            return middle, megabytes / rate
        if (found := PASS.match(line)) and found[1] == name:
            return float(found[3]), float(found[2]) * 1e6
    raise ValueError(f"no line for {name} in: {lines}")


def peers(args, shape, dtype, name):
    """What the other libraries run, by name."""
    found = {}
    if torch is not None:
        tensors = Tensors(SHAPES[shape], dtype)
        if args.ggml and name == "fwd":
            if layer := attempt("ggml", lambda: Layer(args.libraries, tensors.x, *tensors.weights, tensors.top_k)):
                found["ggml `mul_mat_id`"] = layer.run
        for title, function in VARIANTS.items():
            found[title] = lambda function=function: tensors.run(function, name)
    return found


def row(args, shape, dtype, name):
    """Shape, type and pass, then for each library its milliseconds and its share or multiple."""
    others = peers(args, shape, dtype, name)
    source, target = bytearray(OTHERS // 2), bytearray(OTHERS // 2)

    def before():
        # One thread copies: no other library's threads are awake when the next one begins.
        if SHAPES[shape][0] <= FEW:
            target[:] = source

    times, limits = {"moe": []}, []
    for _ in range(args.rounds):
        middle, limit = ours(args, shape, dtype, name)
        times["moe"].append(middle)
        limits.append(limit)
        for title, work in list(others.items()):
            peer = attempt(title, lambda: timed(work, args.seconds, SLOW * middle, before))
            if peer is not None:
                times.setdefault(title, []).append(peer)
            if peer is None or peer > SLOW * middle:
                del others[title]
    tokens, width, hidden, _, top_k = SHAPES[shape]
    limit = statistics.median(limits)
    work = (6 if name == "fwd" else 18) * tokens * top_k * width * hidden
    middles = {title: statistics.median(each) for title, each in times.items()}
    figure = (lambda ms: ms / limit) if tokens <= FEW else (lambda ms: work / ms / limit)
    return {title: (ms, figure(ms)) for title, ms in middles.items()}


# Writing


def cell(shape, value):
    if value is None:
        return ""
    ms, figure = value
    return f"{ms:.2f} ms, " + (f"{figure:.2f} x" if SHAPES[shape][0] <= FEW else f"{100 * figure:.0f} %")


def table(rows):
    titles = list(dict.fromkeys(title for _, values in rows for title in values))
    lines = ["| shape, type, pass | " + " | ".join(titles) + " | best peer / moe |", "| --- " * (len(titles) + 2) + "|"]
    for (shape, dtype, name), values in rows:
        others = [ms for title, (ms, _) in values.items() if title != "moe"]
        ratio = f"{min(others) / values['moe'][0]:.2f}" if others else ""
        cells = " | ".join(cell(shape, values.get(title)) for title in titles)
        lines.append(f"| {shape} {dtype} {name} | {cells} | {ratio} |")
    return "\n".join(lines)


def steps(rows):
    lines = ["| shape, type | forward and backward | packing | step with AdamW and packing |", "| --- | --- | --- | --- |"]
    lines += [f"| {title} | " + " | ".join(f"{ms:.2f} ms" for ms in times) + " |" for title, times in rows]
    return "\n".join(lines)


def picture(rows):
    """Bars of milliseconds, each group relative to its slowest."""
    colours = ["#2b6cb0", "#dd8452", "#8c8c8c", "#55a868"]
    titles = list(dict.fromkeys(title for _, values in rows for title in values))
    height, parts, y = 12, [], 40
    for at, title in enumerate(titles):
        parts.append(f'<rect x="{150 + 190 * at}" y="12" width="12" height="12" fill="{colours[at % 4]}"/>')
        parts.append(f'<text x="{168 + 190 * at}" y="22">{title.replace("`", "")}</text>')
    for (shape, dtype, name), values in rows:
        parts.append(f'<text x="10" y="{y + 10}">{shape} {dtype} {name}</text>')
        most = max(ms for ms, _ in values.values())
        for title, (ms, _) in values.items():
            width = 520 * ms / most
            parts.append(f'<rect x="150" y="{y}" width="{width:.1f}" height="{height - 2}" fill="{colours[titles.index(title) % 4]}"/>')
            parts.append(f'<text x="{156 + width:.1f}" y="{y + 9}" font-size="10">{ms:.2f} ms</text>')
            y += height
        y += 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="780" height="{y}" font-family="sans-serif" font-size="12">'
        f'<rect width="780" height="{y}" fill="white"/>' + "".join(parts) + "</svg>\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=ROOT / "target/release/examples/table")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--types", default=",".join(DTYPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ggml", type=Path, help="folder with libggml-base.so and libggml-cpu.so")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md and docs/cpu.svg")
    args = parser.parse_args()
    if torch is None:
        say("no PyTorch: moe alone is measured")
    else:
        torch.set_num_threads(args.threads)
        args.libraries = Ggml(args.ggml, args.threads) if args.ggml else None
        attempt("the check of the layers", lambda: check(args.libraries))
    rows = []
    for shape in args.shapes.split(","):
        for dtype in args.types.split(","):
            for name in ("fwd",) if SHAPES[shape][0] <= FEW else ("fwd", "fwdbwd"):
                values = attempt(f"{shape} {dtype} {name}", lambda: row(args, shape, dtype, name))
                if values is not None:
                    rows.append(((shape, dtype, name), values))
                    say(f"{shape} {dtype} {name}: {values}")
    whole = []
    for shape in args.shapes.split(","):
        for dtype in args.types.split(",") if SHAPES[shape][0] > FEW else ():
            times = attempt(f"{shape} {dtype} step", lambda: step(args, shape, dtype))
            if times is not None:
                whole.append((f"{shape} {dtype}", times))
    text = "\n\n".join([table(rows), "![Times, each group relative to its slowest](cpu.svg)"] + ([steps(whole)] if whole else []))
    print(text)
    if args.write:
        page = ROOT / "docs/performance.md"
        before, _, rest = page.read_text().partition(BEGIN)
        _, found, after = rest.partition(END)
        if not found:
            sys.exit(f"{page} lacks the lines {BEGIN} and {END}")
        page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
        (ROOT / "docs/cpu.svg").write_text(picture(rows))


if __name__ == "__main__":
    main()
