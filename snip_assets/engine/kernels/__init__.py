"""Compiled loops over arrays, in Numba and LLVM: they know of numbers, not of files or stations."""
