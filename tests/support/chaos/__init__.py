"""The chaos run: traffic of many kinds, injected faults, and a checker of every outcome.

    chaos (tests/fuzz) ──▶ plan ──▶ episodes
                                      │ traffic, wire_traffic ──requests, outcomes──▶ history ──▶ checker ◀── oracle
                                      │ faults, floods ──signals, bytes──▶ service              │
                                      └ state of processes, metrics ───────────────▶ checker ◀──┘ ──▶ report

An episode runs all traffic, injects some faults, waits for recovery, ends the traffic, and is checked as a whole.
"""
