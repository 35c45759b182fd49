"""The native key provider: KEKs made on hosts, wrapped under a key derivation key (KDK) that every host holds."""
