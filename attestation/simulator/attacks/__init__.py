"""The catalogue of attacks on attestation: each an edit of an honest host, and the reason it must be refused for."""
