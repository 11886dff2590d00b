"""The layer's forward pass by ggml, through the libraries that a user has built: what llama.cpp runs for a block of experts.

    cmake -B build -DCMAKE_BUILD_TYPE=Release && cmake --build build    # in ggml's folder
    python3 moe-cpu/compare.py --ggml build/src

The folder holds libggml-base.so and libggml-cpu.so.
"""

import ctypes
from ctypes import c_bool, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

F32, BF16 = 0, 30
ROOM = 64 << 20


class Init(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("memory", c_void_p), ("no_alloc", c_bool)]


class Ggml:
    """The functions that the layer needs, and threads that live as long as this."""

    def __init__(self, folder, threads):
        self.base = ctypes.CDLL(str(Path(folder) / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
        self.cpu = ctypes.CDLL(str(Path(folder) / "libggml-cpu.so"), mode=ctypes.RTLD_GLOBAL)
        self.base.ggml_init.argtypes = [Init]
        params = ctypes.create_string_buffer(4096)
        self.base.ggml_threadpool_params_init(params, c_int(threads))
        pool = self.function(self.cpu, "ggml_threadpool_new")(params)
        self.backend = self.function(self.cpu, "ggml_backend_cpu_init")()
        self.cpu.ggml_backend_cpu_set_n_threads(c_void_p(self.backend), c_int(threads))
        self.cpu.ggml_backend_cpu_set_threadpool(c_void_p(self.backend), c_void_p(pool))

    @staticmethod
    def function(library, name):
        function = getattr(library, name)
        function.restype = c_void_p
        return function

    def context(self, size):
        return self.function(self.base, "ggml_init")(Init(size, None, False))

    def make(self, context, name, *args):
        """A tensor. Pointers are the tensors that this made before."""
        args = [arg if isinstance(arg, ctypes._SimpleCData) else c_void_p(arg) for arg in args]
        tensor = self.function(self.base, f"ggml_{name}")(c_void_p(context), *args)
        if not tensor:
            raise MemoryError(f"ggml_{name}")
        return tensor


class Layer:
    """A graph over copies of torch's tensors: x (T, D), gate (E, D), w13 (E, 2F, D), w2 (E, D, F)."""

    def __init__(self, ggml, x, gate, w13, w2, top_k):
        self.ggml = ggml
        tokens, width = x.shape
        experts, hidden = w2.shape[0], w2.shape[2]
        w1, w3 = (half.contiguous() for half in w13.chunk(2, 1))
        bytes_of = sum(t.numel() * t.element_size() for t in (gate, w1, w3, w2))
        self.context = ggml.context(bytes_of + ROOM + 64 * tokens * top_k * (width + hidden))
        make = lambda name, *args: ggml.make(self.context, name, *args)
        n = c_int64

        x = self.copy(x.float())
        gate, w1, w3, w2 = (self.copy(t) for t in (gate, w1, w3, w2))
        scores = make("soft_max", make("mul_mat", gate, x))
        ids = make("argsort_top_k", scores, c_int(top_k))
        by_expert = make("reshape_3d", scores, n(1), n(experts), n(tokens))
        weights = make("reshape_2d", make("get_rows", by_expert, ids), n(top_k), n(tokens))
        weights = make("div", weights, make("sum_rows", weights))
        weights = make("reshape_3d", weights, n(1), n(top_k), n(tokens))
        x = make("reshape_3d", x, n(width), n(1), n(tokens))
        up, gated = make("mul_mat_id", w3, x, ids), make("mul_mat_id", w1, x, ids)
        y = make("mul_mat_id", w2, make("swiglu_split", gated, up), ids)
        y = make("mul", y, weights)
        row = 4 * width
        parts = [make("view_2d", y, n(width), n(tokens), c_size_t(top_k * row), c_size_t(k * row)) for k in range(top_k)]
        out = parts[0]
        for part in parts[1:]:
            out = make("add", out, part)
        self.out, self.shape = out, (tokens, width)
        self.graph = make("new_graph")
        ggml.base.ggml_build_forward_expand(c_void_p(self.graph), c_void_p(out))

    def copy(self, tensor):
        kind = {"torch.float32": F32, "torch.bfloat16": BF16}[str(tensor.dtype)]
        sizes = [c_int64(size) for size in reversed(tensor.shape)]
        made = self.ggml.make(self.context, f"new_tensor_{len(sizes)}d", c_int(kind), *sizes)
        tensor = tensor.contiguous()
        ctypes.memmove(self.data(made), tensor.data_ptr(), tensor.numel() * tensor.element_size())
        return made

    def data(self, tensor):
        return self.ggml.function(self.ggml.base, "ggml_get_data")(c_void_p(tensor))

    def run(self):
        status = self.ggml.base.ggml_backend_graph_compute(c_void_p(self.ggml.backend), c_void_p(self.graph))
        if status != 0:
            raise RuntimeError(f"ggml's status {status}")

    def result(self):
        """The output as a torch tensor."""
        import torch

        tokens, width = self.shape
        values = (ctypes.c_float * (tokens * width)).from_address(self.data(self.out))
        return torch.tensor(list(values)).view(tokens, width)

    def __del__(self):
        self.ggml.base.ggml_free(c_void_p(self.context))
