"""Dtypes by the names that safetensors gives them. No torch."""

from __future__ import annotations

N_BYTES_OF_DTYPE = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8,
}  # fmt: skip
PARAMETER_DTYPES = ("F16", "BF16", "F32")
FLOAT_DTYPES = (*PARAMETER_DTYPES, "F64")


def widens_exactly(stored: str, dtype: str) -> bool:
    """Whether every value of ``stored`` is a value of ``dtype``."""
    wider = {
        "BOOL": "BOOL", "U8": "U8 I16 I32 I64", "I8": "I8 I16 I32 I64", "I16": "I16 I32 I64", "I32": "I32 I64",
        "I64": "I64", "F16": "F16 F32 F64", "BF16": "BF16 F32 F64", "F32": "F32 F64", "F64": "F64",
    }  # fmt: skip
    return dtype in wider[stored].split()
