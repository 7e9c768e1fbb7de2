"""``digitserve bench``: a load generator for the service at any address.

    cli ──▶ command ──▶ report, plot, slo
               │
               └──▶ coordinator ──JSON messages──▶ process ──▶ load ──▶ unary, streaming ──▶ driver ──▶ http2, wire
                        └──▶ metrics_page                       └──▶ schedule, traffic, counts ──▶ histogram

grpcio's client costs more CPU time per call than the service does, so this package implements HTTP/2 itself: several
processes, each with one thread, one epoll loop and many connections. It depends on the service only by its proto and its
metrics page.
"""
