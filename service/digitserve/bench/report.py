"""What was measured, for people and for programs. Called by ``command``; no I/O."""

import math
from dataclasses import asdict

from digitserve.bench.counts import SLOT_S
from digitserve.bench.fleet import Measured
from digitserve.bench.metrics_page import NotAvailable
from digitserve.bench.plan import Plan
from digitserve.telemetry.block import CODES

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}

BUSY = 0.9
"""From this share of a CPU on, a process of the load generator was itself the limit."""

OK = CODES[0]


def rate(measured: Measured) -> float:
    """Return OK answers a second that arrived in the measured time."""
    # An answer on the last edge may have been put into the slot after it.
    return measured.counts.timeline.total() / measured.measured_s if measured.measured_s else 0.0


def holds(measured: Measured, slo_s: float) -> bool:
    """Tell whether 99 % of the requests that were to be sent were answered with OK within a time."""
    # Errors and requests left over, however short they had waited, are not among the latencies: they count as late.
    num = measured.counts.measured
    return num > 0 and measured.counts.latencies.num_within(slo_s) >= 0.99 * num


def as_json(measured: Measured) -> dict[str, object]:
    """Return everything for programs; times in seconds."""
    counts, plan = measured.counts, measured.plan
    return {
        "plan": asdict(plan),
        "measured_s": measured.measured_s,
        "stopped": measured.stopped,
        "requests_per_s": rate(measured),
        "images_per_s": rate(measured) * plan.images,
        "latency_s": latencies(measured),
        "codes": dict(counts.codes),
        "messages": counts.messages,
        "sent": counts.sent,
        "unsent": counts.unsent,
        "unanswered": counts.unanswered,
        "failed_connections": counts.failed_connections,
        "going_away": counts.going_away,
        "checked": counts.checked,
        "wrong": counts.wrong,
        "service": _service_json(measured),
        "load_generator": {"busy": measured.busy, "cpu_s": measured.cpu_s, "was_the_limit": was_the_limit(measured)},
        "timeline": {"slot_s": SLOT_S, "requests": timeline(measured)},
    }


def latencies(measured: Measured) -> dict[str, float | None]:
    """Return percentiles and the largest latency, in seconds; None without any."""
    histogram = measured.counts.latencies_and_waits()
    if not histogram.num:
        return dict.fromkeys([*PERCENTILES, "max"])
    return {**{name: histogram.percentile_s(share) for name, share in PERCENTILES.items()}, "max": histogram.max_s}


def timeline(measured: Measured) -> list[int]:
    """Return the OK answers in each slot of ``SLOT_S`` of the measured time."""
    counted = measured.counts.timeline
    return [counted[slot] for slot in range(math.ceil(measured.measured_s / SLOT_S - 1e-9))]


def was_the_limit(measured: Measured) -> bool:
    """Tell whether a process of the load generator had no CPU time to spare."""
    return max(measured.busy, default=0.0) > BUSY


def _service_json(measured: Measured) -> dict[str, object]:
    service = measured.service
    if isinstance(service, NotAvailable):
        return {"not_available": str(service)}
    return {
        "images": service.images,
        "cpu_s": service.cpu_s,
        "cpu_s_per_image": service.cpu_s_per_image,
        "mean_batch_size": service.mean_batch_size,
        "batches": {f"{bound:g}": num for bound, num in service.batches.items() if num},
    }


def as_text(measured: Measured) -> str:
    """Return the report for people."""
    lines = {
        "load": describe(measured.plan),
        "measured": _measured_line(measured),
        "answers": f"{rate(measured):,.1f} requests/s, {rate(measured) * measured.plan.images:,.1f} images/s",
        "latency": _latency_line(measured),
        "errors": _errors_line(measured),
        "connections": f"{measured.counts.failed_connections} failed, {measured.counts.going_away} asked to leave",
        "batches": _batches_line(measured),
        "service CPU": _cpu_line(measured),
        "load CPU": _load_line(measured),
    }
    text = "\n".join(f"{name:<12} {line}" for name, line in lines.items())
    return "\n".join([text, *_warnings(measured)])


def describe(plan: Plan) -> str:
    """Return the load in one line."""
    sizes = ", ".join(
        f"{size.height}x{size.width}" + ("" if size.weight == 1 else f":{size.weight:g}") for size in plan.sizes
    )
    loop = (
        "closed loop" if plan.rate is None else f"open loop at {plan.rate:,.1f} requests/s{', Poisson' * plan.poisson}"
    )
    return (
        f"{plan.method}, {plan.images} x {sizes} a request, {loop}, {plan.connections} connections x "
        f"{plan.in_flight} in flight, {plan.processes} processes, {plan.address}"
    )


def _measured_line(measured: Measured) -> str:
    stopped = f", stopped before {measured.plan.duration_s:g} s" if measured.stopped else ""
    return f"{measured.counts.measured:,} requests in {measured.measured_s:.1f} s after {measured.plan.warm_up_s:g} s of warm-up{stopped}"


def _latency_line(measured: Measured) -> str:
    found = {name: value for name, value in latencies(measured).items() if value is not None}
    return ", ".join(f"{name} {value * 1e3:.2f} ms" for name, value in found.items()) or "nothing was answered"


def _errors_line(measured: Measured) -> str:
    counts = measured.counts
    parts = [f"{name} {num:,} ({num / counts.measured:.2%})" for name, num in counts.codes.most_common() if name != OK]
    parts += [f"{num:,} {what}" for num, what in (
        (counts.unanswered, "never answered"), (counts.unsent, "still in line at the end"), (counts.wrong, "wrong answers"),
    ) if num]  # fmt: skip
    said = [f"\n{'':<12} {name}: {message}" for name, message in counts.messages.items() if message]
    return (", ".join(parts) or "none") + "".join(said)


def _batches_line(measured: Measured) -> str:
    service = measured.service
    if isinstance(service, NotAvailable):
        return f"not available: {service}"
    if service.mean_batch_size is None:
        return "none"
    num = sum(service.batches.values())
    below, parts = 0.0, []
    for bound, count in service.batches.items():
        if count:
            lowest = below + 1
            name = (
                f"{bound:g}" if lowest == bound else f"over {below:g}" if math.isinf(bound) else f"{lowest:g}-{bound:g}"
            )
            parts.append(f"{name}: {count / num:.0%}")
        below = bound
    return f"mean {service.mean_batch_size:.1f} images; " + ", ".join(parts)


def _cpu_line(measured: Measured) -> str:
    service = measured.service
    if isinstance(service, NotAvailable):
        return f"not available: {service}"
    if service.cpu_s_per_image is None:
        return "not available: the service has no digitserve_cpu_seconds_total, or classified nothing"
    return f"{service.cpu_s_per_image * 1e6:.1f} us an image, {service.cpu_s:.2f} s in all"


def _load_line(measured: Measured) -> str:
    num = measured.counts.codes.total()
    each = f"{measured.cpu_s / num * 1e6:.1f} us a request, " if num else ""
    return f"{each}processes {', '.join(f'{share:.0%}' for share in measured.busy)} busy"


def _warnings(measured: Measured) -> list[str]:
    warnings = []
    if was_the_limit(measured):
        warnings.append(
            "warning: a process of the load generator was more than "
            f"{BUSY:.0%} busy, so it was the limit, not the service; give it more --processes or CPUs"
        )
    if measured.counts.wrong:
        warnings.append("warning: answers did not hold one prediction for each image")
    return warnings
