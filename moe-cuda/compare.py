#!/usr/bin/env python3
"""Compares the layer with PyTorch on one NVIDIA GPU, in one run, and prints tables in markdown.

    cargo build --release -p moe-examples
    python3 moe-cuda/compare.py --write comparison.json

Rates count the expert products alone, 6 T K D F operations forward and 18 T K D F with backward, over the time of the whole
layer, router included. A share is the rate over that of PyTorch's dense product in the same run. PyTorch and moe take
turns, and medians are given. PyTorch's times are between events on the GPU; moe's are the host's, with a wait for
every step. PyTorch's logits and weight gradients are bf16, moe's are f32.

PyTorch's layer is `torch._grouped_mm` between a gather and a sum by index, which need no atomics and no wait for the host.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

try:
    import torch
except ImportError:
    torch = None

# tokens, width, hidden width, experts, experts per token: as `bench` knows them
SHAPES = {
    "qwen3-30b-a3b": (16384, 2048, 768, 128, 8),
    "mixtral-8x7b": (8192, 4096, 14336, 8, 2),
    "olmoe-1b-7b": (32768, 2048, 1024, 64, 8),
    "dsv3-ep8": (8192, 7168, 2048, 32, 8),
}
DECODE = (2048, 768, 128, 8)
DECODE_TOKENS = (1, 8, 64)
DECODE_LAYERS = 6
PASSES = ("fwd", "fwdbwd")
EAGER, COMPILED, MOE, EXACT = "torch eager", "torch.compile", "moe", "moe, exact gate"
# Rows of an expert are a multiple of this in training, for the products that give weight gradients.
ALIGN = 16
GIB = 2.0**30


def say(text):
    print(text, file=sys.stderr, flush=True)


def attempt(what, work):
    """The result, or None after an error, which is printed: one variant that fails stops no other."""
    try:
        return work()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        say(f"{what} failed: {type(error).__name__}: {' | '.join(lines[:3] + lines[3:][-3:])}")
        return None


# PyTorch's layer


def grouped(a, b, ends):
    """Rows of `a` up to ends[e], from ends[e - 1] on, times b[e]. Rows beyond the last end are left undefined."""
    return torch._grouped_mm(a, b, offs=ends)


Function = torch.autograd.Function if torch else object


class Gather(Function):
    """Tokens by row. Backward sums a token's rows, which leaves out rows that are no slot's."""

    @staticmethod
    def forward(ctx, x, token_of_row, row_of_slot):
        ctx.save_for_backward(row_of_slot)
        ctx.tokens = x.shape[0]
        return x[token_of_row]

    @staticmethod
    def backward(ctx, drows):
        (row_of_slot,) = ctx.saved_tensors
        return drows[row_of_slot].view(ctx.tokens, -1, drows.shape[1]).sum(1), None, None


class Combine(Function):
    """A token's rows times their weights, summed. Rows that are no slot's have the gradient 0."""

    @staticmethod
    def forward(ctx, y, weights, row_of_slot, slot_of_row, token_of_row):
        ctx.save_for_backward(y, weights, row_of_slot, slot_of_row, token_of_row)
        of_token = y[row_of_slot].view(*weights.shape, -1)
        return (of_token * weights[..., None].to(y.dtype)).sum(1)

    @staticmethod
    def backward(ctx, dout):
        y, weights, row_of_slot, slot_of_row, token_of_row = ctx.saved_tensors
        factors = torch.cat([weights.flatten(), weights.new_zeros(1)])[slot_of_row].to(y.dtype)
        dy = dout[token_of_row] * factors[:, None]
        dweights = (y[row_of_slot].view(*weights.shape, -1) * dout[:, None]).sum(-1, dtype=weights.dtype)
        return dy, dweights, None, None, None


def place(ids, experts, align):
    """Where slots lie as rows by expert, each expert's rows filled up to a multiple of `align`, found on the device alone."""
    slots = ids.flatten()
    count = slots.numel()
    counts = torch.histc(slots.float(), experts, 0, experts).long()
    room = (counts + align - 1) // align * align
    ends = room.cumsum(0)
    order = slots.argsort(stable=True)
    shift = (ends - room) - (counts.cumsum(0) - counts)
    row = torch.arange(count, device=ids.device) + shift[slots[order]]
    row_of_slot = torch.empty_like(order).index_copy(0, order, row)
    most = (count + experts * (align - 1) + align - 1) // align * align
    # Rows that are no slot's have the slot `count`, and gather the first token.
    slot_of_row = order.new_full((most,), count).index_copy(0, row, order)
    token_of_row = slot_of_row % count // ids.shape[1]
    return ends.int(), row_of_slot, slot_of_row, token_of_row


def layer(x, gate, w13, w2, top_k, align):
    scores = torch.softmax((x @ gate.t()).float(), -1)
    weights, ids = scores.topk(top_k)
    weights = weights / weights.sum(-1, keepdim=True)
    ends, row_of_slot, slot_of_row, token_of_row = place(ids, gate.shape[0], align)
    rows = Gather.apply(x, token_of_row, row_of_slot)
    gates, ups = grouped(rows, w13.transpose(1, 2), ends).chunk(2, -1)
    y = grouped(torch.nn.functional.silu(gates) * ups, w2.transpose(1, 2), ends)
    return Combine.apply(y, weights, row_of_slot, slot_of_row, token_of_row)


def plain_layer(x, gate, w13, w2, top_k, _):
    """The same, expert by expert in f32."""
    weights, ids = torch.softmax((x @ gate.t()).float(), -1).topk(top_k)
    weights = weights / weights.sum(-1, keepdim=True)
    out = torch.zeros_like(x, dtype=torch.float32)
    for e in range(gate.shape[0]):
        token, k = (ids == e).nonzero(as_tuple=True)
        gates, ups = (x[token].float() @ w13[e].float().t()).chunk(2, -1)
        y = (torch.nn.functional.silu(gates) * ups) @ w2[e].float().t()
        out = out.index_add(0, token, y * weights[token, k, None])
    return out


class Tensors:
    """Parameters and inputs of a layer."""

    def __init__(self, tokens, width, hidden, experts, top_k, device="cuda"):
        def make(*shape):
            return torch.randn(shape, device=device, dtype=torch.bfloat16)

        self.x, self.dy, self.top_k = make(tokens, width), make(tokens, width), top_k
        self.gate = make(experts, width).mul_(width**-0.5)
        self.w13 = make(experts, 2 * hidden, width).mul_(width**-0.5)
        self.w2 = make(experts, width, hidden).mul_(hidden**-0.5)

    def inputs(self):
        return self.x, self.gate, self.w13, self.w2

    def forward(self, function):
        with torch.no_grad():
            return function(*self.inputs(), self.top_k, 1)

    def train(self, function):
        inputs = [tensor.detach().requires_grad_() for tensor in self.inputs()]
        out = function(*inputs, self.top_k, ALIGN)
        return [out.detach(), *torch.autograd.grad(out, inputs, self.dy.to(out.dtype))]


def check(device="cuda"):
    """An error if the layer is not what the loop over experts computes."""
    tensors = Tensors(200, 128, 64, 8, 2, device)
    want, got = tensors.train(plain_layer), tensors.train(layer)
    want.append(want[0])
    got.append(tensors.forward(layer))
    for name, a, b in zip(("y", "dx", "dgate", "dw13", "dw2", "y without gradients"), got, want):
        far = ((a.float() - b.float()).norm() / b.float().norm()).item()
        if not far < 0.02:
            raise ValueError(f"{name} is {far:.2g} off")


# Measuring


def timed(work, seconds):
    """Median of the time between events around each call, in milliseconds."""
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    start = time.monotonic()
    work()
    torch.cuda.synchronize()
    runs = int(min(100, max(5, seconds / (time.monotonic() - start))))
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
    for before, after in marks:
        before.record()
        work()
        after.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in marks)


def dense_rate(seconds):
    """Operations per second of a product of 8192 x 8192 random values in bf16."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / (timed(lambda: a @ b, seconds) / 1e3)


def copy_rate(seconds):
    """Bytes per second, read and written, of a copy of 1 GiB."""
    a = torch.randint(0, 255, (1 << 30,), device="cuda", dtype=torch.uint8)
    b = torch.empty_like(a)
    return 2 * a.numel() / (timed(lambda: b.copy_(a), seconds) / 1e3)


def extra_memory(work):
    """Bytes that one call needs beyond what is there before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


class Watch(threading.Thread):
    """The most memory of the GPU that others take while this runs, looked at every `interval` seconds."""

    def __init__(self, interval):
        super().__init__(daemon=True)
        self.interval, self.done, self.peak = interval, threading.Event(), 0

    def run(self):
        while not self.done.wait(self.interval):
            self.peak = max(self.peak, self.before - torch.cuda.mem_get_info()[0])

    def __enter__(self):
        torch.cuda.empty_cache()
        self.before = torch.cuda.mem_get_info()[0]
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()


def lines_of(*command):
    """What a program prints, line by line, as JSON."""
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=180)
    if ran.returncode != 0:
        raise RuntimeError(f"exit code {ran.returncode}: {ran.stderr}")
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]


class Moe:
    """The programs of this repository."""

    def __init__(self, bench, seconds):
        self.bench = bench.resolve()
        self.decode, self.seconds = self.bench.with_name("decode"), seconds
        text = subprocess.run([str(self.bench), "--help"], capture_output=True, text=True, check=True).stdout
        # Without the option the gate is exact.
        self.gates = {MOE: ["--gate", "native"], EXACT: ["--gate", "exact"]} if "--gate" in text else {EXACT: []}
        self.base = None

    def tiny(self):
        """What a process takes for itself; its result does not matter."""
        return lines_of(self.decode, "--tokens", 1, "--sizes", 64, 64, 2, 1, "--layers", 1, "--seconds", 0)

    def measure(self, name, which, gate):
        command = [self.bench, "--device", "cuda", "--dtype", "bf16", "--shape", name, "--pass", which]
        return lines_of(*command, "--seconds", self.seconds, *gate)[-1]

    def steps(self, tokens, gate):
        return lines_of(self.decode, "--tokens", ",".join(map(str, tokens)), "--seconds", self.seconds, *gate)


class Comparison:
    def __init__(self, args):
        self.args, self.seconds = args, 0.1 if args.quick else 0.4
        self.deadline = time.monotonic() + 60 * args.minutes
        self.torch = not args.skip_torch
        self.dense, self.copy = [], None
        self.cells, self.memory, self.decode = {}, {}, []
        self.moe = attempt(args.bench, lambda: Moe(args.bench, self.seconds))

    def add(self, shape, which, variant, ms):
        if ms is not None:
            self.cells.setdefault((shape, which, variant), []).append(ms)
            say(f"{shape} {which}, {variant}: {ms:.3f} ms")

    def torch_variants(self, tensors):
        """PyTorch's ways by pass, warmed up."""
        functions = {EAGER: layer}
        if self.args.compile:
            torch._dynamo.reset()
            functions[COMPILED] = torch.compile(layer, dynamic=False)
        ready = {}
        for variant, function in functions.items():
            for which, step in zip(PASSES, (tensors.forward, tensors.train)):
                work = partial(step, function)
                if attempt(f"{which}, {variant}", work) is not None:
                    ready.setdefault(which, {})[variant] = work
        return ready

    def shape(self, name, until):
        """Every variant in turn, and again if that is done by the time `until`."""
        ready = {}
        if self.torch:
            ready = self.torch_variants(Tensors(*SHAPES[name]))
            for variant, work in ready.get("fwdbwd", {}).items():
                self.memory[name, variant] = extra_memory(work)
        for again in range(self.args.rounds):
            start = time.monotonic()
            for which in PASSES:
                for variant, gate in self.moe.gates.items() if self.moe else [(None, None)]:
                    if variant == EXACT and MOE in self.moe.gates and time.monotonic() > until:
                        say(f"{name} {which}, {variant}: left out, for want of time")
                        continue
                    if self.torch:
                        # moe's program begins with dense products too: both find a warm GPU.
                        self.dense.append(dense_rate(self.seconds))
                    for other, work in ready.get(which, {}).items():
                        self.add(name, which, other, attempt(other, lambda: timed(work, self.seconds)))
                    if variant:
                        self.add(name, which, variant, attempt(variant, lambda: self.ours(name, which, variant, gate)))
            if 2 * time.monotonic() - start > until:
                break

    def ours(self, name, which, variant, gate):
        if not self.torch:
            report = self.moe.measure(name, which, gate)
            self.dense.append(report["dense_tflops"] * 1e12)
            return report["median_ms"]
        if which == "fwd" or variant != next(iter(self.moe.gates)) or self.moe.base is None:
            return self.moe.measure(name, which, gate)["median_ms"]
        with Watch(0.2) as watch:
            report = self.moe.measure(name, which, gate)
        # The program's pool gives nothing back, and a dense product is timed last, so that a peak is not overlooked. That product
        # fits into the room of what the layer needed.
        tokens, width, hidden, experts, _ = SHAPES[name]
        given = 2 * (3 * experts * width * hidden + experts * width + 2 * tokens * width)
        self.memory[name, MOE] = watch.peak - self.moe.base - given
        return report["median_ms"]

    def torch_decode(self, tokens):
        """Microseconds of a layer, of several with weights of their own."""
        layers = [Tensors(tokens, *DECODE) for _ in range(DECODE_LAYERS)]
        return timed(lambda: [one.forward(layer) for one in layers], self.seconds) * 1e3 / len(layers)

    def few_tokens(self):
        by_tokens = {}
        for variant, gate in self.moe.gates.items() if self.moe else []:
            lines = attempt(f"decode, {variant}", lambda: self.moe.steps(DECODE_TOKENS, gate))
            by_tokens[variant] = {line["tokens"]: line for line in lines or []}
        ours, exact = by_tokens.get(MOE) or by_tokens.get(EXACT, {}), by_tokens.get(EXACT, {})
        width, hidden, _, _ = DECODE
        for tokens in DECODE_TOKENS:
            row = {"tokens": tokens}
            if line := exact.get(tokens):
                row["exact_us"] = line["graph_us"]
            if line := ours.get(tokens):
                row.update({key: line[key] for key in ("touched_experts", "eager_us", "graph_us")})
                if self.copy:
                    row["floor_us"] = line["touched_experts"] * 6 * width * hidden / self.copy * 1e6
            if self.torch:
                row["torch_us"] = attempt(f"torch, {tokens} tokens", lambda: self.torch_decode(tokens))
            self.decode.append(row)

    def run(self):
        if self.torch:
            torch.manual_seed(1)
            if attempt("the check of torch's layer", lambda: check() or True) is None:
                sys.exit("torch's layer cannot be measured here; --skip-torch leaves it out")
            self.copy = copy_rate(self.seconds)
            if self.moe:
                with Watch(0.02) as watch:
                    known = attempt("decode", self.moe.tiny)
                self.moe.base = watch.peak if known else None
        self.few_tokens()
        for number, name in enumerate(self.args.shapes):
            now = time.monotonic()
            until = now + (self.deadline - now) / (len(self.args.shapes) - number)
            attempt(name, lambda: self.shape(name, until))
            if self.torch:
                torch.cuda.empty_cache()

    # Reporting

    def rate(self, shape, which, variant):
        """Operations per second, or None."""
        times = self.cells.get((shape, which, variant))
        tokens, width, hidden, _, top_k = SHAPES[shape]
        work = (6 if which == "fwd" else 18) * tokens * top_k * width * hidden
        return work / (statistics.median(times) / 1e3) if times else None

    def report(self):
        dense = statistics.median(self.dense) if self.dense else None
        rates, memory = [], []
        for shape in self.args.shapes:
            for which in PASSES:
                row = {"shape": shape, "pass": which}
                for variant in (EAGER, COMPILED, MOE, EXACT):
                    if rate := self.rate(shape, which, variant):
                        ms = self.cells[shape, which, variant]
                        row[variant] = {"ms": ms, "tflops": rate / 1e12, "share": rate / dense if dense else None}
                ours, theirs = row.get(MOE) or row.get(EXACT), row.get(COMPILED)
                row["ratio"] = ours["tflops"] / theirs["tflops"] if ours and theirs else None
                rates.append(row)
            variants = [v for v in (EAGER, COMPILED, MOE) if (shape, v) in self.memory]
            memory.append({"shape": shape, **{v: self.memory[shape, v] for v in variants}})
        return {
            "machine": machine(),
            "revision": revision(),
            "dense_tflops": dense and dense / 1e12,
            "copy_gbs": self.copy and self.copy / 1e9,
            "rates": rates,
            "extra_bytes": memory,
            "decode": self.decode,
        }


def machine():
    if torch and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    return "unknown"


def revision():
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return attempt("git", lambda: subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("| " + " | ".join("---" for _ in head) + " |")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def number(value, form="{:.2f}"):
    return "" if value is None else form.format(value)


def show(report):
    variants = (EAGER, COMPILED, MOE, EXACT)
    print(f"{report['machine']}; revision {report['revision'] or 'unknown'}")
    dense, copy = number(report["dense_tflops"], "{:.0f}"), number(report["copy_gbs"], "{:.0f}")
    print(f"dense 8192 x 8192 x 8192 product: {dense} TFLOP/s; copy: {copy} GB/s\n")

    def cell(part):
        return "" if part is None else f"{part['tflops']:.0f} ({number(part['share'])})"

    print("TFLOP/s of the whole layer, and in brackets the share of the dense rate:\n")
    rows = [[r["shape"], r["pass"], *(cell(r.get(v)) for v in variants), number(r["ratio"])] for r in report["rates"]]
    table(["shape", "pass", *variants, "moe / torch.compile"], rows)
    columns = variants[:3]
    print("GiB that forward and backward need beyond parameters and inputs:\n")
    rows = [[r["shape"], *(number(r[v] / GIB if v in r else None, "{:.1f}") for v in columns)] for r in report["extra_bytes"]]
    table(["shape", *columns], rows)
    print("Few tokens, one layer of D,F,E,K = " + ",".join(map(str, DECODE)) + ", us:\n")
    keys = ("touched_experts", "floor_us", "graph_us", "exact_us", "eager_us", "torch_us")
    rows = [[str(r["tokens"]), *(number(r.get(key), "{:.0f}") for key in keys)] for r in report["decode"]]
    head = ["tokens", "experts touched", "their bytes / copy rate", "moe, graph", "the same, exact gate", "moe, eager", "torch eager"]
    table(head, rows)


def main():
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="names, separated by commas")
    parser.add_argument("--bench", type=Path, default=root / "target/release/bench", help="the program; decode lies beside it")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, one round")
    parser.add_argument("--rounds", type=int, default=2, help="most turns of each variant")
    parser.add_argument("--minutes", type=float, default=3.5, help="what is left out or not repeated keeps the run near this")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile too")
    parser.add_argument("--skip-torch", action="store_true", help="moe alone; shares are of its own dense product")
    parser.add_argument("--write", type=Path, help="a file for the figures, as JSON")
    args = parser.parse_args()
    args.shapes = args.shapes.split(",")
    args.rounds = 1 if args.quick else max(1, args.rounds)
    if unknown := [name for name in args.shapes if name not in SHAPES]:
        parser.error(f"no shape {unknown[0]}: there are {', '.join(SHAPES)}")
    if not args.skip_torch and not (torch and torch.cuda.is_available()):
        parser.error("torch sees no GPU here; --skip-torch leaves it out")
    comparison = Comparison(args)
    comparison.run()
    report = comparison.report()
    show(report)
    if args.write:
        args.write.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
