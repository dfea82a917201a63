"""Ledger -> spans, after the reply: whole trees with explicit times, for sampled, slow and failed requests.

The outermost holder of a ledger emits the tree, each service's spans under that service's own resource: the door, or
the client that says it holds the ledger (header `ledger-holder`). So there are no orphans and no half traces, and
nothing is instrumented (docs/adr/0006).

    context.py       W3C trace context
    conventions.py   every name that a span has
    sampling.py      which requests get spans
    tree.py          one ledger -> one tree
    destination.py   where spans go: OTLP over gRPC or HTTP, a file of OTLP JSON
    tracer.py        the queue and the thread between the reply and the destination; counts of what was lost
"""
