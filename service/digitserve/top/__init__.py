"""``digitserve top``: shows a running service from its ``/metrics`` page.

    cli ──▶ command ──▶ Monitor ──▶ Figures ──▶ screen
               └── Reader thread ──▶ scrape.Scraper ──HTTP──▶ service

The service only answers scrapes. Needs prometheus_client.
"""
