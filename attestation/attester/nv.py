"""Handles and NV memory of a TPM: what is defined, what is in it."""

from tpm2_pytss import ESAPI, TPM2_CAP, TPMA_NV

_CHUNK = 512
"""TPM2_NV_Read size that every TPM allows (TPM_PT_NV_BUFFER_MAX is at least 512: PC Client Platform TPM Profile)."""
_MAX_HANDLES = 64


def list_handles(esapi: ESAPI, first: int) -> list[int]:
    """List handles of the kind of ``first`` (its top byte), from ``first`` on."""
    _, capability = esapi.get_capability(TPM2_CAP.HANDLES, first, _MAX_HANDLES)
    handles = capability.data.handles
    return [int(handles[i]) for i in range(handles.count)]


def read_nv(esapi: ESAPI, index: int) -> bytes | None:
    """Read an NV index with its own, empty authorisation; None if it is not defined or was never written."""
    if index not in list_handles(esapi, index):
        return None
    handle = esapi.tr_from_tpmpublic(index)
    try:
        public, _ = esapi.nv_read_public(handle)
        area = public.nvPublic
        if not int(area.attributes) & int(TPMA_NV.WRITTEN):
            return None
        size = int(area.dataSize)
        chunks = [bytes(esapi.nv_read(handle, min(_CHUNK, size - offset), offset)) for offset in range(0, size, _CHUNK)]
        return b"".join(chunks)
    finally:
        esapi.tr_close(handle)
