"""Release records for tests, and a process that appends them: ``python -m tests.release_records URL NAME COUNT``."""

import sys

from attestation.model import BootIdentity, HostId
from keyprovider.trusted.model import Operation, ReleaseRecord
from keyprovider.trusted.store import SqlReleaseStore, open_schema
from serving.database import Database

VM = "5f0d8a4e-0a5c-4f6e-8a3b-2f1e0d9c8b7a"
KEY_REFERENCE = "0b0e7a5c-3c52-4f0b-9a51-6f2d8f3b1c11"


def release_record(name: str = "one", *, generation: int = 1) -> ReleaseRecord:
    """A record of one release."""
    return ReleaseRecord(
        released_at=1_700_000_000,
        operation=Operation.UNWRAP,
        host_id=HostId("ab" * 32),
        vm_id=VM,
        component="disk/root",
        provider="gold",
        key_reference=KEY_REFERENCE,
        token_id=name,
        grant_id="grant-1",
        principal="management",
        generation=generation,
        policy_version=7,
        reference="debian-12, März",
        evidence_digest=bytes(range(32)),
        boot=BootIdentity(reset_count=4, restart_count=2),
    )


def main() -> None:
    """Append records one by one; say the index of each on standard output once it is answered."""
    url, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    database = Database(url)
    open_schema(database)
    store = SqlReleaseStore(database)
    for number in range(count):
        indexes = store.append([release_record(name, generation=number)])
        print(indexes.start, flush=True)
    database.close()


if __name__ == "__main__":
    main()
