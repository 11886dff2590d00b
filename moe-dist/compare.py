#!/usr/bin/env python3
"""Collectives beside PyTorch's gloo backend, on this host.

    pip install torch numpy
    cargo build --release -p moe-dist --example speed
    moe-dist/compare.py target/release/examples/speed [--runs 7] [--encrypt]

All-reduce and variable all-to-all of f32 with 4 KiB, 1, 8 and 64 MiB a rank, on 2 and 4 ranks. Each run starts gloo's processes and then
the program's, one after the other, so that both meet the same machine; medians over the runs are printed, and their ratio.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time

SIZES = [4 << 10, 1 << 20, 8 << 20, 64 << 20]
SECONDS = 0.3


def parts(total, rank, ranks):
    """As in the example `speed`."""
    whole = ranks * (ranks + 1) // 2
    parts = [total * (1 + (to + ranks - rank) % ranks) // whole for to in range(ranks)]
    parts[rank] += total - sum(parts)
    return parts


def gloo():
    """One rank."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for size in SIZES:
        values = torch.full((size // 4,), 1 / 1024)
        send = parts(size // 4, rank, ranks)
        receive = [parts(size // 4, other, ranks)[rank] for other in range(ranks)]
        target = torch.empty(sum(receive))
        for name, operation in [
            ("all_reduce", lambda: dist.all_reduce(values)),
            ("all_to_all", lambda: dist.all_to_all_single(target, values, receive, send)),
        ]:
            operation()
            begin = time.perf_counter()
            operation()
            once = max(time.perf_counter() - begin, 1e-6)
            count = torch.tensor([min(max(int(SECONDS / once), 3), 2000)])
            dist.broadcast(count, 0)
            begin = time.perf_counter()
            for _ in range(int(count)):
                operation()
            seconds = (time.perf_counter() - begin) / int(count)
            if rank == 0:
                print(json.dumps({"op": name, "ranks": ranks, "bytes": size, "us": seconds * 1e6}))
    dist.destroy_process_group()


def run_gloo(ranks):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = dict(os.environ, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(ranks), GLOO_SOCKET_IFNAME="lo")
    command = [sys.executable, __file__, "--gloo", "-"]
    started = [
        subprocess.Popen(command, env=dict(base, RANK=str(rank)), stdout=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    return lines("".join(process.communicate()[0] for process in started))


def run_speed(program, ranks, encrypt):
    environment = dict(os.environ, **({"MOE_ENCRYPT": "1"} if encrypt else {}))
    command = [program, str(ranks), *map(str, SIZES)]
    return lines(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def lines(text):
    return {(line["op"], line["bytes"]): line["us"] for line in map(json.loads, text.splitlines())}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("program")
    arguments.add_argument("--runs", type=int, default=7)
    arguments.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    arguments.add_argument("--encrypt", action="store_true")
    arguments.add_argument("--gloo", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.gloo:
        return gloo()
    print("| ranks | operation | a rank | gloo us | moe-dist us | gloo GB/s | moe-dist GB/s | gloo's time / moe-dist's |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for ranks in options.ranks:
        runs = [(run_gloo(ranks), run_speed(options.program, ranks, options.encrypt)) for _ in range(options.runs)]
        for op in ["all_reduce", "all_to_all"]:
            for size in SIZES:
                theirs, ours = (statistics.median(run[which][op, size] for run in runs) for which in (0, 1))
                name = f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
                rates = " | ".join(f"{size / us / 1e3:.2f}" for us in (theirs, ours))
                print(f"| {ranks} | {op} | {name} | {theirs:.0f} | {ours:.0f} | {rates} | {theirs / ours:.2f} |", flush=True)


if __name__ == "__main__":
    main()
