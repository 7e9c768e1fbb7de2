"""All fuzz targets: functions of any bytes, each with seeds. They raise an exception if a property is violated.

tests/fuzz/guided.py            ──▶ TARGETS, guided by coverage, for hours (``make fuzz``)
tests/fuzz/test_targets_fuzz.py ──▶ TARGETS, on seeds, changed seeds and random bytes (``make test``)
"""

from support import fuzz_files, fuzz_operator, fuzz_requests, fuzz_transport

TARGETS = {
    **fuzz_transport.TARGETS,
    **fuzz_requests.TARGETS,
    **fuzz_files.TARGETS,
    **fuzz_operator.TARGETS,
}
