"""Compile the shipped row kernels for three GPUs, without one, and count what they need.

    python tests/kernels/triton_resources.py > tests/kernels/triton_resources.json

Without ``TRITON_INTERPRET``; run by test_triton_compile.py. Numbers belong to one version of
Triton, which brings its own assembler. One line a kernel, so that a change shows as lines.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from offpref.kernels.triton_kernels import gradient_kernel, kl_kernel, logps_kernel
from offpref.kernels.triton_rows import CONFIGS, RowConfig

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
KERNELS = {"logps": logps_kernel, "kl": kl_kernel, "gradient": gradient_kernel}
TRANSFORMS = {"bias_ptr", "ref_bias_ptr", "scale", "ref_scale", "softcap", "ref_softcap"}
REFERENCE = {"ref_ptr", "ref_max_ptr", "ref_log_sum_ptr", "gap_ptr", "log_tilt_ptr"}
ROWS = {"x_ptr", "ref_ptr", "out_ptr", "bias_ptr", "ref_bias_ptr"}
SCALARS = {"first_column", "ignore_index"}  # not specialised
ALWAYS = {"x_ptr", "out_ptr", "labels_ptr", "max_ptr", "log_sum_ptr", "logps_ptr"}
OPTIONAL: dict[
    str, dict[str, set[str] | None]
] = {  # by kernel and variant, the optional arguments that are there; "all": every one
    "logps": {"logps": set(), "all": None},
    "kl": {"forward_kl": REFERENCE | {"forward_kl_ptr"}, "all": None},
    "gradient": {
        "logps": {"grad_logps_ptr"},
        "entropy": {"grad_entropy_ptr", "entropy_ptr"},
        "forward_kl": REFERENCE | {"grad_logps_ptr", "grad_forward_kl_ptr"},
        "all": None,
    },
}


class Case(NamedTuple):
    """One kernel as it is launched."""

    kernel: str
    variant: str
    dtype: str
    arch: int
    config: RowConfig
    is_strided: bool = False

    @property
    def name(self) -> str:
        block = f"{self.config.block}/{self.config.num_warps}"
        strided = " strided" if self.is_strided else ""
        return f"{self.kernel} {self.variant}{strided} {self.dtype} {block} sm_{self.arch}"


def shipped() -> Iterator[Case]:
    """Every kernel, configuration and architecture, at its leanest and with all it can do.

    float16 differs from bfloat16 in one conversion, and strides in addresses: both are compiled
    once per configuration, with all the kernel can do.
    """
    for kernel, table in CONFIGS.items():
        for config in dict.fromkeys(config for _, config in table):
            for variant in OPTIONAL[kernel]:
                for dtype in ("bf16", "fp32"):
                    for arch in (80, 90, 100):
                        yield Case(kernel, variant, dtype, arch, config)
            yield Case(kernel, "all", "fp16", 90, config)
            yield Case(kernel, "all", "fp32", 90, config, is_strided=True)


def source(case: Case) -> ASTSource:
    """Return the kernel with the types of its arguments, as Triton's launcher would see them."""
    kernel = KERNELS[case.kernel]
    optional = OPTIONAL[case.kernel][case.variant]
    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        is_there = optional is None or name in optional or name in ALWAYS
        value: Any = case.config.block if name == "BLOCK" else None
        kind = "constexpr"
        if name.endswith("_ptr") and is_there:
            kind = "*" + ("i64" if name == "labels_ptr" else case.dtype if name in ROWS else "fp32")
        elif name in TRANSFORMS and is_there:
            kind = "fp32"
        elif name.startswith("stride") and name.endswith("v") and not case.is_strided:
            value = 1
        elif name.startswith("stride") or name in ("limit", "ref_limit", "num_columns"):
            kind = "i64" if case.is_strided else "i32"
        elif name in SCALARS:
            kind = "i32"
        signature[name] = kind
        if kind == "constexpr":
            constants[name] = value
        elif not case.is_strided and kind != "fp32" and name not in SCALARS:
            attributes[(position,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def resources(case: Case) -> dict[str, int]:
    """Return the registers per thread and the bytes of stack and local memory of the kernel."""
    compiled = triton.compile(
        source(case),
        target=GPUTarget("cuda", case.arch, 32),
        options={"num_warps": case.config.num_warps},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        output = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    counts = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", output))
    return {name: int(counts[name]) for name in ("REG", "STACK", "LOCAL")}


def main() -> None:
    """Print the table as JSON."""
    kernels = {case.name: resources(case) for case in shipped()}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(kernels[name])}" for name in kernels)
    sys.stdout.write(f'{{"triton": "{triton.__version__}", "kernels": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main()
