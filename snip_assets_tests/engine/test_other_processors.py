"""Kernels on processors with less than this one: their code is another, what they find the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core import registry

KERNELS = [
    str(Path(__file__).parent / "kernels" / f"test_{n}.py")
    for n in ("byte_products", "scaled_products")
]


@pytest.mark.parametrize("without", ["amx", "avx512vnni", "avx512"])
def test_products_are_exact_on_processors_with_less(without: str) -> None:
    _, name, features = registry.cpu_target.target_context.codegen().magic_tuple()
    less = features.replace(f"+{without}", f"-{without}")
    if less == features:
        pytest.skip("this processor is such a one")
    environment = {**os.environ, "NUMBA_CPU_FEATURES": less, "NUMBA_CPU_NAME": name}
    command = [sys.executable, "-m", "pytest", "-q", *KERNELS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
