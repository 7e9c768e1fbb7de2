"""Reports of a measurement, as text and as JSON. Called by ``command``; no I/O."""

import math
from dataclasses import asdict

from digitserve.bench.coordinator import Measurement
from digitserve.bench.counts import SLOT_S
from digitserve.bench.plan import Plan
from digitserve.protocol.names import Code
from digitserve.scrape import NotAvailable

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}

BUSY = 0.9
"""Above this CPU utilisation, a load generator process limits the measured rate."""


def rate(measurement: Measurement) -> float:
    """Return OK answers per second that arrived in the measured time."""
    # The total, not the sum of ``timeline()``: an answer at the very end may be in the slot after the last one.
    return measurement.counts.timeline.total() / measurement.measured_s if measurement.measured_s else 0.0


def meets_slo(measurement: Measurement, slo_s: float) -> bool:
    """Return whether at least 99 % of the requests were answered with OK within ``slo_s``.

    Errors and unfinished requests count as late, however short they have waited: they are not among the latencies.
    """
    num = measurement.counts.measured
    return num > 0 and measurement.counts.latencies.num_within(slo_s) >= 0.99 * num


def is_gone(measurement: Measurement) -> bool:
    """Return whether the service ended, or could not be reached any more: no connection was left at the end."""
    return measurement.counts.disconnected == measurement.plan.connections


def as_json(measurement: Measurement) -> dict[str, object]:
    """Return the whole report as a JSON object; times in seconds."""
    counts, plan = measurement.counts, measurement.plan
    return {
        "plan": asdict(plan),
        "measured_s": measurement.measured_s,
        "stopped": measurement.stopped,
        "requests_per_s": rate(measurement),
        "images_per_s": rate(measurement) * plan.images,
        "latency_s": latencies(measurement),
        "codes": dict(counts.codes),
        "messages": counts.messages,
        "sent": counts.sent,
        "unsent": counts.unsent,
        "unanswered": counts.unanswered,
        "failed_connections": counts.failed_connections,
        "going_away": counts.going_away,
        "disconnected": counts.disconnected,
        "checked": counts.checked,
        "wrong": counts.wrong,
        "service": _service_json(measurement),
        "load_generator": {
            "busy": measurement.busy,
            "cpu_s": measurement.cpu_s,
            "was_the_limit": is_saturated(measurement),
        },
        "timeline": {"slot_s": SLOT_S, "requests": timeline(measurement)},
    }


def latencies(measurement: Measurement) -> dict[str, float | None]:
    """Return percentiles and maximum of the latencies in seconds; None when nothing was answered."""
    histogram = measurement.counts.latencies_and_waits()
    if not histogram.num:
        return dict.fromkeys([*PERCENTILES, "max"])
    return {
        **{name: histogram.percentile_s(fraction) for name, fraction in PERCENTILES.items()},
        "max": histogram.max_s,
    }


def timeline(measurement: Measurement) -> list[int]:
    """Return the number of OK answers in each slot of ``SLOT_S`` of the measured time."""
    counted = measurement.counts.timeline
    return [counted[slot] for slot in range(math.ceil(measurement.measured_s / SLOT_S - 1e-9))]


def is_saturated(measurement: Measurement) -> bool:
    """Return whether a load generator process had no CPU time to spare, so that it limited the rate."""
    return max(measurement.busy, default=0.0) > BUSY


def _service_json(measurement: Measurement) -> dict[str, object]:
    service = measurement.service
    if isinstance(service, NotAvailable):
        return {"not_available": str(service)}
    return {
        "images": service.images,
        "cpu_s": service.cpu_s,
        "cpu_s_per_image": service.cpu_s_per_image,
        "mean_batch_size": service.mean_batch_size,
        "batches": {f"{bound:g}": num for bound, num in service.batches.items() if num},
    }


def as_text(measurement: Measurement) -> str:
    """Return the report as text, one line per topic."""
    lines = {
        "load": describe(measurement.plan),
        "measured": _measured_line(measurement),
        "answers": f"{rate(measurement):,.1f} requests/s, {rate(measurement) * measurement.plan.images:,.1f} images/s",
        "latency": _latency_line(measurement),
        "errors": _errors_line(measurement),
        "connections": f"{measurement.counts.failed_connections} failed, {measurement.counts.going_away} closed at the service's request",
        "batches": _batches_line(measurement),
        "service CPU": _cpu_line(measurement),
        "load CPU": _load_line(measurement),
    }
    text = "\n".join(f"{name:<12} {line}" for name, line in lines.items())
    return "\n".join([text, *_warnings(measurement)])


def describe(plan: Plan) -> str:
    """Return a description of the load in one line."""
    sizes = ", ".join(
        f"{size.height}x{size.width}" + ("" if size.weight == 1 else f":{size.weight:g}") for size in plan.sizes
    )
    loop = (
        "closed loop" if plan.rate is None else f"open loop at {plan.rate:,.1f} requests/s{', Poisson' * plan.poisson}"
    )
    return (
        f"{plan.method}, {plan.images} x {sizes} per request, {loop}, {plan.connections} connections x "
        f"{plan.in_flight} in flight, {plan.processes} processes, {plan.address}"
    )


def _measured_line(measurement: Measurement) -> str:
    stopped = f", stopped before {measurement.plan.duration_s:g} s" if measurement.stopped else ""
    return f"{measurement.counts.measured:,} requests in {measurement.measured_s:.1f} s after {measurement.plan.warm_up_s:g} s warm-up{stopped}"


def _latency_line(measurement: Measurement) -> str:
    found = {name: value for name, value in latencies(measurement).items() if value is not None}
    return ", ".join(f"{name} {value * 1e3:.2f} ms" for name, value in found.items()) or "no answers"


def _errors_line(measurement: Measurement) -> str:
    counts = measurement.counts
    parts = [
        f"{name} {num:,} ({num / counts.measured:.2%})"
        for name, num in counts.codes.most_common()
        if name != Code.OK.label
    ]
    parts += [f"{num:,} {what}" for num, what in (
        (counts.unanswered, "never answered"), (counts.unsent, "due but not sent"), (counts.wrong, "wrong answers"),
    ) if num]  # fmt: skip
    messages = [f"\n{'':<12} {name}: {message}" for name, message in counts.messages.items() if message]
    return (", ".join(parts) or "none") + "".join(messages)


def _batches_line(measurement: Measurement) -> str:
    service = measurement.service
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


def _cpu_line(measurement: Measurement) -> str:
    service = measurement.service
    if isinstance(service, NotAvailable):
        return f"not available: {service}"
    if service.cpu_s_per_image is None:
        return "not available: the service does not export digitserve_cpu_seconds_total, or it classified no image"
    return f"{service.cpu_s_per_image * 1e6:.1f} us per image, {service.cpu_s:.2f} s in total"


def _load_line(measurement: Measurement) -> str:
    num = measurement.counts.codes.total()
    each = f"{measurement.cpu_s / num * 1e6:.1f} us per request, " if num else ""
    return f"{each}processes {', '.join(f'{share:.0%}' for share in measurement.busy) or 'not'} busy"


def _warnings(measurement: Measurement) -> list[str]:
    warnings = []
    if is_saturated(measurement):
        warnings.append(
            f"warning: a load generator process used more than {BUSY:.0%} of a CPU, so the load generator, not the "
            "service, was the limit; use more --processes or CPUs"
        )
    if measurement.counts.wrong:
        warnings.append("warning: some answers did not have one prediction per image")
    return warnings
