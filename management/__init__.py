"""Management server: inventory, storage policies, placement and its signed grants. It holds no keys of trusted providers."""
