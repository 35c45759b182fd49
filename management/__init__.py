"""Management server: inventory, storage policies, placement and its signed grants.

It is a courier for trusted key providers: no RPC, table or log of it could hold a key.
"""
