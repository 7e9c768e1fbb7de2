"""``digitserve bench``: a load generator for any address of the service.

    cli ▶ command ▶ report, plot, metrics_page, slo, fleet ──exec──▶ process ▶ load ▶ unary, streaming ▶ lanes ▶ http2, frames, wire
                                                  ◀──JSON lines──    load ▶ schedule, traffic, counts ▶ histogram

grpcio's client costs more CPU a call than the service does, so this one speaks HTTP/2 itself: several processes, each
with one thread, one epoll loop and many connections. It knows the service by its proto and its metrics only.
"""
