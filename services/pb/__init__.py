"""Generated from `protos/` by `make protos`; only `services/wire.py` and `services/oip.py` import it."""
