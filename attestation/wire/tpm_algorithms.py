"""Algorithm and curve identifiers of the TPM (TCG Algorithm Registry; TPM 2.0 Part 2, 6.3 and 6.4).

Pure tables.
"""

import hashlib
from enum import IntEnum
from typing import Final

from attestation.errors import WireError


class TpmAlgorithm(IntEnum):
    """TPM_ALG_ID, as far as keys, signatures and event logs here may name one."""

    RSA = 0x0001
    SHA1 = 0x0004
    HMAC = 0x0005
    AES = 0x0006
    KEYEDHASH = 0x0008
    SHA256 = 0x000B
    SHA384 = 0x000C
    SHA512 = 0x000D
    NULL = 0x0010
    SM3_256 = 0x0012
    RSASSA = 0x0014
    RSAES = 0x0015
    RSAPSS = 0x0016
    OAEP = 0x0017
    ECDSA = 0x0018
    ECDH = 0x0019
    ECC = 0x0023
    CFB = 0x0043


class TpmCurve(IntEnum):
    """TPM_ECC_CURVE, as far as keys here may use one."""

    NIST_P256 = 0x0003
    NIST_P384 = 0x0004


HASH_NAMES: Final = {
    TpmAlgorithm.SHA1: "sha1",
    TpmAlgorithm.SHA256: "sha256",
    TpmAlgorithm.SHA384: "sha384",
    TpmAlgorithm.SHA512: "sha512",
}
"""``hashlib``'s names of the hashes that TPMs use."""


def algorithm(value: int) -> TpmAlgorithm:
    """The algorithm of that identifier.

    Raises:
        WireError: None that is known here.
    """
    try:
        return TpmAlgorithm(value)
    except ValueError as exc:
        raise WireError(f"algorithm 0x{value:04x} is not known") from exc


def hash_algorithm(value: int) -> TpmAlgorithm:
    """The hash algorithm of that identifier.

    Raises:
        WireError: None that can be computed here.
    """
    found = algorithm(value)
    if found not in HASH_NAMES:
        raise WireError(f"algorithm 0x{value:04x} is no hash that is supported")
    return found


def digest(hash_id: TpmAlgorithm, data: bytes) -> bytes:
    """Hash of ``data``.

    Raises:
        KeyError: ``hash_id`` is no hash of ``HASH_NAMES``; parsers let no other through.
    """
    return hashlib.new(HASH_NAMES[hash_id], data).digest()
