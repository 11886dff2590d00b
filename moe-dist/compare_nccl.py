#!/usr/bin/env python3
"""All-reduce and all-to-all of f32 on two GPUs: moe-dist over NCCL beside PyTorch over the same NCCL, in one run.

    cargo build --release -p moe-dist --features nccl --example nccl_speed
    python3 moe-dist/compare_nccl.py target/release/examples/nccl_speed

Needs two GPUs and PyTorch with CUDA. Times are microseconds per call, medians of 7 rounds of many calls between two waits of the host. GB/s are
bytes that leave a GPU for the other one, over the time: of an all-to-all half of what a rank has, of an all-reduce of two ranks all of it.
"""

import os
import statistics
import subprocess
import sys
import time

MIB = [1, 8, 64, 256]
ROUNDS = 7


def torch_rank(rank, port, results):
    import torch
    import torch.distributed as dist

    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for mib in MIB:
        length = mib << 18
        sums, source, target = (torch.zeros(length, device="cuda") for _ in range(3))
        calls = {
            "all_reduce": lambda: dist.all_reduce(sums),
            "all_to_all": lambda: dist.all_to_all_single(target, source),
        }
        for name, call in calls.items():
            count = 100 if mib < 64 else 20
            rounds = []
            for _ in range(ROUNDS + 1):
                start = time.perf_counter()
                for _ in range(count):
                    call()
                torch.cuda.synchronize()
                rounds.append((time.perf_counter() - start) * 1e6 / count)
            # The first round connects and warms up.
            results[name, mib, rank] = statistics.median(rounds[1:])
    dist.destroy_process_group()


def pytorch():
    import torch.multiprocessing as mp

    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(torch_rank, args=(29417, results), nprocs=2)
        return {(name, mib): time for (name, mib, rank), time in results.items() if rank == 0}


def parse(text):
    lines = (line.split() for line in text.splitlines())
    return {(name, int(mib), checked): float(time) for name, mib, checked, time in lines}


def threads(program):
    return parse(subprocess.run([program], check=True, capture_output=True, text=True).stdout)


def processes(program):
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MOE_PORT": "29418", "MOE_RUN": "compare"}
    ranks = [
        subprocess.Popen(
            [program],
            env={**os.environ, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        sys.exit("a rank failed")
    return parse(outputs[0])


def main():
    program = os.path.abspath(sys.argv[1])
    ours = {"threads": threads(program), "processes": processes(program)}
    torch = pytorch()
    print("| operation, MiB | PyTorch us | GB/s | " + " | ".join(
        f"{way}{how} us | GB/s" for way in ours for how in (", compared", "")) + " |")
    for name, mib in sorted(torch, key=lambda key: (key[0], key[1])):
        sent = (mib << 20) / (2 if name == "all_to_all" else 1)
        cells = [torch[name, mib]]
        cells += [times[name, mib, checked] for times in ours.values() for checked in ("true", "false")]
        print(f"| {name} {mib} | " + " | ".join(f"{time:.0f} | {sent / time / 1e3:.0f}" for time in cells) + " |")


if __name__ == "__main__":
    main()
